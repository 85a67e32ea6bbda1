"""`votes`: two answers that several people compared, as in PandaLM (Wang et al. 2023).

    {"instruction": "…", "input": "…", "response1": "…", "response2": "…",
     "annotator1": 2, "annotator2": 2, "annotator3": 0}

WeOpenML/PandaLM, data/testset-v1.json. Up to nine annotators; 1 and 2 name an answer, 0 is a
tie, nothing is no vote. More than half of all votes decide: for an answer the pair is preferred,
for a tie it is a tie, and where no side has them it is inconsistent; the last two are kept for
audit. The margin is the share of votes for the chosen answer minus that of votes against it.
"""

from dpoflow.contracts.pairs import Label, Message, PreferencePair, Source, Vote
from dpoflow.sources.formats.messages import Format, Row, field, one_of, pair, text
from dpoflow.sources.reasons import Quarantine

_ANNOTATORS = tuple(f"annotator{number}" for number in range(1, 10))
_ANSWERS = ("response1", "response2")


def fits(row: Row) -> bool:
    """Whether there are an instruction, two answers and somebody's vote."""
    texts = all(isinstance(row.get(each), str) for each in ("instruction", *_ANSWERS))
    return texts and any(each in row for each in _ANNOTATORS)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair with every vote; the answer that most votes name is the chosen one."""
    votes = {
        name: one_of(row[name], (0, 1, 2), name)
        for name in _ANNOTATORS
        if row.get(name) not in (None, "")
    }
    if not votes:
        raise Quarantine("missing_field", "annotator1")
    said = list(votes.values())
    first, second = said.count(1), said.count(2)
    chosen = 2 if second > first else 1
    half = len(said) / 2
    label: Label = (
        "preferred"
        if max(first, second) > half
        else "tie"
        if said.count(0) > half
        else "inconsistent"
    )
    asked = text(field(row, "instruction"), "instruction")
    given = row.get("input")
    if given is not None and text(given, "input").strip():
        asked = f"{asked}\n\n{given}"
    answers = [text(field(row, each), each) for each in _ANSWERS]
    return pair(
        row,
        origin,
        (Message(role="user", content=asked),),
        answers[chosen - 1],
        answers[2 - chosen],
        margin=abs(first - second) / len(said),
        label=label,
        votes=tuple(
            Vote(
                annotator=name,
                order="chosen_first" if chosen == 1 else "rejected_first",
                verdict="tie" if vote == 0 else "chosen" if vote == chosen else "rejected",
            )
            for name, vote in votes.items()
        ),
        slice_field="motivation_app",
    )


FORMAT = Format(
    name="votes",
    keys="instruction, response1, response2, annotator1 and so on (0, 1 or 2), perhaps input",
    reads=frozenset({"instruction", "input", *_ANSWERS, "motivation_app", *_ANNOTATORS}),
    fits=fits,
    convert=convert,
)
