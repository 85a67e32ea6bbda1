"""Which examples property tests draw: the same ones, but in CI, where what fails can be pasted."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAILS = """
from hypothesis import given
from hypothesis import strategies as st

@given(st.integers())
def test_no_number_is_large(number):
    print("drawn", number)
    assert number < 1000
"""


def drawn(folder: Path, *options: str, **environment: str) -> tuple[list[str], str]:
    """The numbers that a failing property was tried on, and all that pytest printed."""
    shutil.copy(Path(__file__).parents[1] / "conftest.py", folder / "conftest.py")
    (folder / "test_it.py").write_text(FAILS)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CI", "PYTEST"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder,
        env=kept | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return re.findall(r"drawn (-?\d+)", done.stdout), done.stdout


def test_without_ci_each_run_draws_the_same_and_leaves_nothing_for_the_next(tmp_path: Path) -> None:
    first, _ = drawn(tmp_path)
    again, _ = drawn(tmp_path)

    assert first == again
    assert not (tmp_path / ".hypothesis" / "examples").exists()


@pytest.mark.parametrize("options", [(), ("-n", "2")])
def test_in_ci_runs_draw_others_and_a_failure_is_printed_to_be_pasted(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    draws = set()
    for _ in range(2):
        numbers, printed = drawn(tmp_path, *options, CI="true")
        draws.add(tuple(numbers))

        assert re.search(r"@reproduce_failure\('[\d.]+', b'\S+'\)", printed)
        assert "number=1000" in printed  # the smallest that fails

    assert len(draws) > 1
