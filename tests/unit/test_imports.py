"""Heavy imports leave the collector as it was, and spare it what they made."""

import gc
import importlib
import sys
from pathlib import Path

import pytest

from dpoflow.state.imports import unswept


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
