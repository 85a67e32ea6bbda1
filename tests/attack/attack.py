"""Every attempt, one after the other, and what became of it.

Gives   `attack`: `Result`s; `Result.fault`: why it is not as it must be; `table`: by kind, Markdown
Not     what is tried (attempts.py), servers (`__main__`, and the test that uses this)

An attempt has failed as it must where nothing changed in tables and files, nothing was let
through, and, where the gate said no, the log has the real user and the sentence of the answer.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tests.attack.attempts import Attempt, attempts
from tests.attack.stage import ATTACKERS, Answer, Stage

REFUSED = (401, 403)
NO_SUCH_WAY = (301, 308, 400, 404, 405, 411, 413, 415, 421)
"""The server does not know such a request; there was nothing to decide."""


@dataclass(frozen=True)
class Result:
    kind: str
    role: str
    user: str
    name: str
    how: str
    status: int
    changed: tuple[str, ...]
    """What is not as it was, in words of `Stage.seen`."""
    let_through: bool
    in_log: bool
    harmless: bool
    by_mlflow: bool
    owed: bool
    """Whether the log owes a row: the gate, and not the lack of a route, refused it."""
    sentence: str

    @property
    def succeeded(self) -> bool:
        return bool(self.changed) or self.let_through

    @property
    def fault(self) -> str | None:
        """Why this is not as it must be, against the gate; None where it is."""
        if self.succeeded:
            return f"succeeded (changed: {', '.join(self.changed) or 'nothing seen'})"
        if self.status >= 500 and not self.harmless:
            return "the server broke"
        if self.owed and not self.in_log:
            return "refused, and the log does not say so"
        if self.owed and not self.by_mlflow and not _is_sentence(self.sentence):
            return "refused without a sentence"
        return None


def attack(
    stage: Stage,
    roles: Iterable[str],
    every: int = 1,
    say: Callable[[Result], None] = lambda result: None,
) -> list[Result]:
    """Attempts of these roles, all or every so many; on stock what destroys most comes last."""
    tried = [
        (role, each)
        for place, role in enumerate(roles)
        for number, each in enumerate(attempts(stage, role))
        if (number + place) % every == 0
    ]
    if not stage.guarded:
        tried.sort(key=lambda pair: "deleted" in pair[1].kind)
    results, before = [], stage.seen()
    for role, each in tried:
        result, before = _try(stage, role, each, before)
        results.append(result)
        say(result)
    return results


def _try(
    stage: Stage, role: str, attempt: Attempt, before: dict[str, Any]
) -> tuple[Result, dict[str, Any]]:
    user = ATTACKERS[role]
    last = stage.last_row() if stage.guarded else 0
    answers = attempt.way.send(stage.server, user)
    after = stage.seen()
    rows = stage.rows_since(last) if stage.guarded else []
    worst = min(answers, key=lambda each: (not 200 <= each.status < 300, each.status))
    let_through = any(200 <= each.status < 300 for each in answers) and not attempt.harmless
    is_probe = not user and attempt.way.method == "GET"
    owed = worst.status in REFUSED and not is_probe
    sentence = worst.message
    if worst.status == 0:  # it answered and hung up before it had the whole body
        said = [row for row in rows if row["outcome"] == "denied" and row["actor"] == user]
        owed, sentence = True, said[0]["detail"]["why"] if said else ""
    result = Result(
        kind=attempt.kind,
        role=role,
        user=user,
        name=attempt.name,
        how=f"{attempt.way.method} {attempt.way.target}",
        status=worst.status,
        changed=tuple(sorted(key for key in after if after[key] != before[key])),
        let_through=let_through,
        in_log=_in_log(attempt, user, answers, rows),
        harmless=attempt.harmless,
        by_mlflow=attempt.by_mlflow,
        owed=owed and stage.guarded and not attempt.harmless,
        sentence=sentence[:400],
    )
    return result, after


def _in_log(
    attempt: Attempt, user: str, answers: Sequence[Answer], rows: list[dict[str, Any]]
) -> bool:
    """Whether each answer has its row: the real user, and the sentence that they were told."""
    if attempt.by_mlflow and user:
        undone = [row for row in rows if row["action"] == "undone" and row["actor"] == user]
        return [row["detail"]["status"] for row in undone] == [each.status for each in answers]
    said = [row["detail"].get("why") for row in rows if _is_denial(row, user)]
    if not user or any(each.status == 0 for each in answers):
        return len(said) == len(answers)
    return sorted(map(str, said)) == sorted(each.message for each in answers)


def _is_denial(row: dict[str, Any], user: str) -> bool:
    return bool(row["outcome"] == "denied" and row["actor"] == user)


def _is_sentence(text: str) -> bool:
    return len(text.split()) >= 3 and not text.startswith(("{", "<"))


def table(here: Sequence[Result], stock: Sequence[Result]) -> str:
    """By kind of attack, in the order of the attempts.

    What stock MLflow says yes to changes the store in most cases and not in all: both are counted.
    """
    lines = [
        "| Attack | Attempts | MLflow alone: let through | seen to change something | The gate |",
        "|---|---|---|---|---|",
    ]
    for kind in dict.fromkeys(each.kind for each in here):
        ours = [each for each in here if each.kind == kind]
        theirs = [each for each in stock if each.kind == kind and each.succeeded]
        seen = sum(bool(each.changed) for each in theirs)
        bad = sum(each.succeeded for each in ours)
        told = f"**{bad} succeeded**" if bad else "refused"
        lines.append(f"| {kind} | {len(ours)} | {len(theirs)} | {seen} | {told} |")
    return "\n".join(lines) + "\n"
