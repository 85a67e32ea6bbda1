"""`mlflow-labels`: comparisons that people answered in review queues of MLflow.

    {"id": "…", "messages": [{"role": "user", "content": "…"}], "first": "…", "second": "…",
     "votes": [{"annotator": "ann", "choice": "first", "left": "second", "reason": "…"}], "at": 1}

tracking/feedback.py writes these rows. `choice` is first, second, equal or neither; the last two
are ties. `left` is the answer that stood on the left when this annotator saw them. A vote without
its annotator, or a comparison whose texts are gone, is told with its reason.
"""

from dpoflow.contracts.pairs import PreferencePair, Source
from dpoflow.sources.formats.ballots import Ballot, Choice, decided
from dpoflow.sources.formats.messages import Format, Row, conversation, field, messages, text
from dpoflow.sources.reasons import Code, Quarantine

_ANSWERS = ("first", "second")
_CHOICES: dict[str, Choice] = {
    "first": "first",
    "second": "second",
    "equal": "tie",
    "neither": "tie",
}


def fits(row: Row) -> bool:
    """Whether it is a row of ours: votes, and when they came."""
    return isinstance(row.get("votes"), list) and isinstance(row.get("at"), int)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair with every vote; the answer that most votes name is the chosen one."""
    if (unusable := row.get("unusable")) is not None:
        code: Code = "wrong_id" if unusable == "changed" else "missing_field"
        raise Quarantine(code, f"the comparison's trace is {text(unusable, 'unusable')[:40]}")
    votes = field(row, "votes")
    if not isinstance(votes, list):
        raise Quarantine("wrong_type", "votes is no list")
    ballots = [_ballot(vote, f"votes[{at}]") for at, vote in enumerate(votes)]
    prompt = conversation(messages(field(row, "messages"), "messages"))
    answers = [text(field(row, each), each) for each in _ANSWERS]
    return decided(row, origin, prompt, answers, ballots)


def _ballot(vote: object, where: str) -> Ballot:
    if not isinstance(vote, dict):
        raise Quarantine("wrong_type", f"{where} is no vote")
    if vote.get("choice") is None:
        raise Quarantine("no_vote", "finished without an answer")
    if vote.get("annotator") in (None, ""):
        raise Quarantine("no_annotator", str(vote.get("why", where))[:200])
    choice = text(vote["choice"], f"{where}.choice")
    if choice not in _CHOICES:
        raise Quarantine("ambiguous", f"{where}.choice is {choice[:40]!r}")
    reason = vote.get("reason")
    said = None if reason is None else text(reason, f"{where}.reason")
    if choice == "neither":
        said = f"neither is good: {said}" if said else "neither is good"
    return Ballot(
        text(vote["annotator"], f"{where}.annotator"),
        _CHOICES[choice],
        turned=vote.get("left") == "second",
        rationale=said,
    )


FORMAT = Format(
    name="mlflow-labels",
    keys="id, messages, first, second, votes (annotator, choice), at",
    reads=frozenset({"id", "messages", *_ANSWERS, "votes", "slice", "at", "unusable"}),
    fits=fits,
    convert=convert,
)
