"""`dpoflow` without a command: its version, its help."""

import tomllib
from pathlib import Path

import pytest

from dpoflow_pipelines.cli import main

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def test_it_prints_the_version_of_pyproject_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dpoflow", "--version"])

    with pytest.raises(SystemExit) as ended:
        main()

    version = tomllib.loads(PYPROJECT.read_text("utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"dpoflow {version}\n"
    assert ended.value.code == 0


def test_without_a_command_it_prints_its_help_and_no_empty_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dpoflow"])

    with pytest.raises(SystemExit) as ended:
        main()

    told = capsys.readouterr()
    assert "Usage: dpoflow" in told.out + told.err
    assert "error:" not in told.out + told.err
    assert ended.value.code == 2
