"""What the property tests draw: the same each time where somebody works, and new in CI."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parents[1] / "conftest.py"

# Run by two processes at once, one of which has another module of ours imported by then.
PROPERTY = """
import importlib
import os
from pathlib import Path
from hypothesis import given, settings, strategies as st

WORKER = os.environ["PYTEST_XDIST_WORKER"]
DRAWN = Path(__file__).with_name(WORKER)

@settings(max_examples=300)
@given(st.text(), st.integers())
def test_small(text, number):
    if WORKER == "gw1":
        importlib.import_module("dpoflow.contracts.judges")
    with DRAWN.open("a") as out:
        print(ascii((text, number)), file=out)
    assert number < 10**6
"""
ASIDE = ("CI", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTHONHASHSEED")


def drawn(folder: Path, **environment: str) -> tuple[str, str, str]:
    """What each of the two processes drew, and what pytest printed."""
    shutil.copy(CONFTEST, folder)
    (folder / "test_small.py").write_text(PROPERTY)
    inherited = {name: value for name, value in os.environ.items() if name not in ASIDE}
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "--dist", "each", "test_small.py"],
        cwd=folder,
        env={**inherited, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed" in done.stdout, done.stdout + done.stderr
    return (folder / "gw0").read_text(), (folder / "gw1").read_text(), done.stdout


def test_where_somebody_works_a_property_draws_the_same_each_time(tmp_path: Path) -> None:
    one, other, _ = drawn(tmp_path)

    assert one.count("\n") > 100
    assert one == other
    assert not (tmp_path / ".hypothesis" / "examples").exists()


def test_in_ci_a_property_draws_anew_and_prints_what_breaks_it_as_code(tmp_path: Path) -> None:
    one, other, said = drawn(tmp_path, CI="true")

    assert one != other
    assert re.search(r"test_small\(\s*(E\s+)?text='',.*\s*(E\s+)?number=1000000,", said), said
    assert re.search(r"@reproduce_failure\('[\d.]+', b'[\w+/=]+'\)", said), said
