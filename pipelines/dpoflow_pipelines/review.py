"""`dpoflow review`: what waits for a reviewer, and what reviewers and the promoter do about it.

Reads   a team's server, through its endpoints alone
Gives   a function for each command
Not     the rules (registry/gate), the road to champion (registry/promotion.py)
"""

import contextlib
import html
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.errors import ConfigError, DataRejected, DpoflowError, ServiceUnavailable
from dpoflow.registry.promotion import Due, drift_of, promote, promote_due, version_of
from dpoflow.registry.team import GATE, MLFLOW, Refused, Team

Row = Mapping[str, Any]


def subject_of(text: str) -> tuple[str, str]:
    """Model and number of NAME/VERSION."""
    name, _, version = text.rpartition("/")
    if not name or not version.isdecimal():
        raise ConfigError(f"{text!r} names no version; write NAME/VERSION, such as support-desk/3")
    return name, str(int(version))


def reason_of(text: str) -> str:
    """A reason that says something."""
    if not (reason := " ".join(text.split())):
        raise ConfigError('--reason is empty; say why, such as --reason "read 30 answers"')
    return reason


# ---------------------------------------------------------------- reading


def reviews_of(team: Team, model: str | None) -> list[dict[str, Any]]:
    """Versions with a case, and where each stands."""
    found: list[dict[str, Any]] = team.get(
        f"{GATE}/reviews", **({"model": model} if model else {})
    )["reviews"]
    return [each | {"sentence": _words(each["sentence"])} for each in found]


def show_reviews(team: Team, console: Console, model: str | None, *, as_json: bool) -> None:
    """All of them, and where the registry drifted from the log."""
    found, drift = reviews_of(team, model), drift_of(team)
    if as_json:
        _print_json({"reviews": found, "drift": drift})
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("version", "verdict", "submitted by", "state", ""):
        table.add_column(column)
    for each in found:
        name = f"{each['model']}/{each['version']}" + " (champion)" * each["champion"]
        told = (name, each["verdict"], each["submitter"] or "nobody", each["state"], _why(each))
        table.add_row(*(_shown(str(cell)) for cell in told))
    if found:
        console.print(table)
    else:
        console.print("no version with evidence is here", highlight=False)
    _show_drift(console, drift)


def show_review(team: Team, console: Console, subject: str, *, as_json: bool) -> None:
    """One version, with the page that MLflow shows of it."""
    name, number = subject_of(subject)
    version = version_of(team, name, number)
    review = review_of(team, name, number)
    description = html.unescape(str(version.get("description", "")))
    if as_json:
        _print_json({**review, "description": description})
        return
    by = f", submitted by {review['submitter']}" if review["submitter"] else ", names no submission"
    console.print(f"[bold]{_shown(subject)}[/]: {_shown(review['state'] + by)}", highlight=False)
    if why := _why(review):
        console.print(f"  {_shown(why)}", highlight=False)
    console.print()
    for line in description.splitlines():
        console.print(_shown(line), highlight=False)


def review_of(team: Team, name: str, number: str) -> dict[str, Any]:
    """Where one version stands. ConfigError where it has no case."""
    for each in reviews_of(team, name):
        if each["version"] == number:
            return each
    raise ConfigError(
        f"{name}/{number} has no evidence, so there is nothing to review; "
        "dpoflow review list shows what has"
    )


def _why(review: Row) -> str:
    """What stands behind a state."""
    match review["state"]:
        case "approved" | "rejected":
            return f"{review['reviewer']}: {review['reason']}"
        case "lapsed":
            return str(review["why"])
        case "waiting" if review["submitter"] is None:
            return "names no submission, so nobody can approve it"
        case "waiting":
            return str(review["sentence"])
    return ""


# ---------------------------------------------------------------- deciding


def decide(team: Team, console: Console, subject: str, word: str, reason: str) -> None:
    """Set the tag `approval`, as the page does. Raises GateNotPassed, ConfigError."""
    name, number = subject_of(subject)
    value = f"{word}: {reason_of(reason)}"
    _check_there(team, name, number)  # a typo is no refusal
    with _of_whom(team, name, number):
        team.post(
            f"{MLFLOW}/model-versions/set-tag",
            name=name,
            version=number,
            key="approval",
            value=value,
        )
    done = "approved; the promoter makes it champion" if word == "approve" else "rejected"
    console.print(f"{name}/{number} is {done}", highlight=False)


def _check_there(team: Team, name: str, number: str) -> None:
    try:
        version_of(team, name, number)
    except (Refused, ConfigError) as error:
        raise ConfigError(
            f"{name}/{number} is not there for {team.user} ({error}); dpoflow review list shows "
            "what waits"
        ) from None


@contextlib.contextmanager
def _of_whom(team: Team, name: str, number: str) -> Iterator[None]:
    """A refusal that is about the user, not about the version, is a ConfigError."""
    try:
        yield
    except Refused as refused:
        found = [each for each in reviews_of(team, name) if each["version"] == number]
        own = any(team.user in (each["submitter"], each["owner"]) for each in found)
        if own or "reviewer" not in team.roles:
            raise ConfigError(str(refused)) from None
        raise


def ask_back(team: Team, console: Console, subject: str, reason: str) -> None:
    """Ask to go back to a version. Raises GateNotPassed, ConfigError."""
    name, number = subject_of(subject)
    with team.as_role("reviewer"):
        team.post(f"{GATE}/rollbacks", model=name, version=number, reason=reason_of(reason))
    console.print(
        f"asked to go back to {name}/{number}; the promoter makes it champion", highlight=False
    )


# ---------------------------------------------------------------- promoting


def promote_all(team: Team, console: Console) -> None:
    """One round; then drift. Raises the first error once all was tried."""
    outcomes = promote_due(team, _say(console))
    if not outcomes:
        console.print("nothing is due", highlight=False)
    failed = [f"{each.due.subject}: {each.error}" for each in outcomes if each.error is not None]
    for line in failed[1:]:
        console.print(f"[yellow]not promoted:[/] {_shown(line)}", highlight=False)
    _show_drift(console, drift_of(team))
    for each in outcomes:
        if each.error is not None:
            raise each.error


def promote_one(team: Team, console: Console, subject: str) -> None:
    """The one version that is named."""
    name, number = subject_of(subject)
    told = team.get(f"{GATE}/promotions", model=name)["due"]
    due = next((Due(**each) for each in told if each["version"] == number), None)
    promote(team, due or Due(name, number, "promotion", "named"), _say(console))


def watch(team: Team, console: Console, every_s: float) -> None:
    """Rounds without end. What is away, or wrong with a version, ends nothing; it is told once."""
    console.print(f"watching as {team.user}, every {every_s:g} s", highlight=False)
    if "promoter" not in team.roles:
        raise ConfigError(f"{team.user} is no promoter on this server; ask an admin for that role")
    told: list[str] = []
    while True:
        lines: list[str] = []
        try:
            lines += [
                f"{each.due.subject}: {each.error}"
                for each in promote_due(team, _say(console))
                if each.error is not None
            ]
            lines += [f"drift: {line}" for line in drift_of(team)]
        except DpoflowError as error:
            lines.append(str(error))
        for line in lines:
            if line not in told:
                console.print(_shown(line), highlight=False)
        told = lines
        time.sleep(every_s)


def _say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(_shown(line), highlight=False)


def _show_drift(console: Console, drift: list[str]) -> None:
    for line in drift:
        console.print(f"[red]drift:[/] {_shown(line)}", highlight=False)


# ---------------------------------------------------------------- the log


def rows_of(team: Team) -> Iterator[dict[str, Any]]:
    """The whole log, oldest first. Raises ConfigError for who may not read it."""
    first: int | None = 1
    while first:
        try:
            page = team.get(f"{GATE}/audit", **{"from": str(first), "limit": "1000"})
        except Refused as refused:
            raise ConfigError(str(refused)) from None
        yield from page["rows"]
        first = page["next"]


def show_history(team: Team, console: Console, model: str, *, as_json: bool) -> None:
    """What happened to a model, in words."""
    rows = [row for row in rows_of(team) if is_about(row, model)]
    if as_json:
        _print_json({"rows": rows})
        return
    if not rows:
        console.print(f"the log says nothing of {_shown(model)}", highlight=False)
    for row in rows:
        who = row["actor"] or "somebody unknown"
        line = f"{row['seq']:>5}  {row['at'][:19].replace('T', ' ')}  {who} {in_words(row)}"
        console.print(_shown(line, keep_spaces=True), highlight=False)


def is_about(row: Row, model: str) -> bool:
    """Whether a row names the model, or a version or an alias of it."""
    subject = str(row["subject"])
    name, _, version = subject.rpartition("/")
    return model in (subject, row["detail"].get("model"), subject.partition("@")[0]) or (
        name == model and version.isdecimal()
    )


_WORDS = {
    "submission": "submitted a run",
    "version": "recorded a version with evidence",
    "version-recorded": "recorded {subject}",
    "approval": "approved {subject}: {reason}",
    "rejection": "rejected {subject}: {reason}",
    "promotion-begun": "began the {kind} of {subject}",
    "champion-file": "wrote a file of {subject}",
    "promotion-verified": "verified the files of {subject}",
    "promotion-closed": "gave up on {subject}: {why}",
    "previous-champion": "set previous_champion to {subject}",
    "promoted": "made {subject} champion",
    "champion-again": "set champion to {subject} again",
    "rollback-asked": "asked to go back to {subject}: {reason}",
    "tag": "set a tag of {subject}",
    "undone": "row {row} did not happen: MLflow answered {status}",
}


def in_words(row: Row) -> str:
    """What a row says, after the name of who did it."""
    told = {**row["detail"], "subject": row["subject"]}
    if row["outcome"] == "denied":
        return f"was refused {row['action']} on {row['subject']}: {told.get('why', '')}"
    words = _WORDS.get(row["action"], f"{row['action']} {{subject}}")
    return words.format_map(_Said(told))


class _Said(dict[str, Any]):
    """What a row has not is left out."""

    def __missing__(self, key: str) -> str:
        return "?"


def show_verified(team: Team, console: Console, *, as_json: bool) -> None:
    """Whether the log is whole, by the server. DataRejected where it is not."""
    told = team.get(f"{GATE}/audit/verify")
    _tell_verified(console, told, as_json=as_json)


def show_verified_offline(database: str, console: Console, *, as_json: bool) -> None:
    """The same by the database and the key alone. Raises DataRejected, ServiceUnavailable."""
    from sqlalchemy.exc import SQLAlchemyError

    from dpoflow.registry.gate.audit import engine_of, own_key, verify

    key = own_key()
    engine = engine_of(database)
    try:
        whole = verify(engine, key)
        told = {"whole": True, "fault": None, "rows": whole.rows, "head": whole.head}
    except DataRejected as error:
        told = {"whole": False, "fault": str(error), "rows": None, "head": None}
    except SQLAlchemyError as error:
        raise ServiceUnavailable(
            f"the log cannot be read from that database ({type(error).__name__}); check its URI"
        ) from None
    finally:
        engine.dispose()
    _tell_verified(console, told, as_json=as_json)


def _tell_verified(console: Console, told: Row, *, as_json: bool) -> None:
    if as_json:
        _print_json(told)
    elif told["whole"]:
        console.print(f"the log is whole: {told['rows']} rows, and its end is", highlight=False)
        console.print(str(told["head"]), highlight=False)
    if not told["whole"]:
        raise DataRejected(str(told["fault"]))


# ---------------------------------------------------------------- words for a terminal


def _words(text: str) -> str:
    """A line of a description, without its Markdown."""
    return html.unescape(text).replace("**", "")


def _shown(text: str, *, keep_spaces: bool = False) -> str:
    """Somebody's text: no markup of ours, no control characters for the terminal."""
    one = text if keep_spaces else " ".join(text.split())
    return escape("".join(char if char.isprintable() else "�" for char in one))


def _print_json(value: Any) -> None:
    import sys

    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
