"""What the log's rows are in words, and which of them are about a model."""

from typing import Any

import pytest

from dpoflow.contracts.errors import ConfigError
from dpoflow_pipelines.review import in_words, is_about, reason_of, subject_of


def row(action: str, subject: str, outcome: str = "allowed", **detail: Any) -> dict[str, Any]:
    return {"action": action, "subject": subject, "outcome": outcome, "detail": detail}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (row("approval", "desk/3", reason="read {all}"), "approved desk/3: read {all}"),
        (row("promoted", "desk/3", kind="promotion"), "made desk/3 champion"),
        (row("rollback-asked", "desk/2", reason="worse"), "asked to go back to desk/2: worse"),
        (row("promotion-begun", "desk/3"), "began the ? of desk/3"),
        (row("account-create", "eve"), "account-create eve"),
        (
            row("set-alias", "desk/3", "denied", why="champion moves by approval alone"),
            "was refused set-alias on desk/3: champion moves by approval alone",
        ),
    ],
)
def test_a_row_is_a_sentence(given: dict[str, Any], words: str) -> None:
    assert in_words(given) == words


@pytest.mark.parametrize(
    ("given", "about"),
    [
        (row("approval", "desk/3"), True),
        (row("approval", "help/desk/3"), False),
        (row("approval", "desk2/3"), False),
        (row("delete-alias", "desk@champion", "denied"), True),
        (row("delete-model", "desk", "denied"), True),
        (row("submission", "0" * 32, model="desk"), True),
        (row("write-artifact", "desk/model/config.json", "denied"), False),
    ],
)
def test_the_rows_of_a_model_are_those_that_name_it(given: dict[str, Any], *, about: bool) -> None:
    assert is_about(given, "desk") is about


def test_a_version_is_a_name_and_a_number() -> None:
    assert subject_of("team/desk/03") == ("team/desk", "3")
    for wrong in ("desk", "desk/", "/3", "desk/x", "desk@champion"):
        with pytest.raises(ConfigError, match="write NAME/VERSION"):
            subject_of(wrong)


def test_a_reason_says_something() -> None:
    assert reason_of(" read\n them ") == "read them"
    with pytest.raises(ConfigError, match="--reason is empty"):
        reason_of(" \n")
