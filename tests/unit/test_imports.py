"""Heavy imports leave the collector as it was, spare it what they made, and can be had lighter."""

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpoflow.state.imports import load, unswept


def test_what_a_module_made_is_never_gone_through_and_the_collector_is_on_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_of_lists.py").write_text("LISTS = [[] for _ in range(5_000)]\n")
    monkeypatch.syspath_prepend(tmp_path)
    swept = len(gc.get_objects())

    with unswept():
        assert not gc.isenabled()
        made_of_lists = importlib.import_module("made_of_lists")

    assert gc.isenabled()
    assert len(made_of_lists.LISTS) == 5_000
    assert len(gc.get_objects()) < swept  # neither these lists, nor what was there before
    gc.unfreeze()
    del sys.modules["made_of_lists"]


def test_where_nothing_was_left_to_import_garbage_stays_garbage() -> None:
    before = gc.get_freeze_count()

    with unswept():
        importlib.import_module("json")

    assert gc.get_freeze_count() == before


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), unswept():
        importlib.import_module("no_such_module")

    assert gc.isenabled()


GREEDY = "try:\n    import costly\nexcept ImportError:\n    costly = None\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a test can write packages that this process then finds, and has lost afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "costly.py").write_text("PRICE = 7\n")
    yield tmp_path
    gc.unfreeze()
    for name in ("costly", "greedy"):
        sys.modules.pop(name, None)


def test_what_a_module_would_like_to_have_is_kept_from_it_and_from_nobody_afterwards(
    packages: Path,
) -> None:
    (packages / "greedy.py").write_text(GREEDY)

    load("greedy", without=("costly", "no_such_module"))

    assert sys.modules["greedy"].costly is None
    assert "costly" not in sys.modules
    assert importlib.import_module("costly").PRICE == 7
    assert importlib.util.find_spec("no_such_module") is None


def test_what_a_module_must_have_it_gets(packages: Path) -> None:
    (packages / "greedy.py").write_text("import costly\n")

    load("greedy", without=("costly",))

    assert sys.modules["greedy"].costly.PRICE == 7


def test_what_is_loaded_already_is_there_for_everybody(packages: Path) -> None:
    (packages / "greedy.py").write_text(GREEDY)
    costly = importlib.import_module("costly")

    load("greedy", without=("costly",))

    assert sys.modules["greedy"].costly is costly
