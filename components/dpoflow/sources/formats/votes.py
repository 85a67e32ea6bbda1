"""`votes`: two answers that several people compared, as in PandaLM (Wang et al. 2023).

    {"instruction": "…", "input": "…", "response1": "…", "response2": "…",
     "annotator1": 2, "annotator2": 2, "annotator3": 0}

WeOpenML/PandaLM, data/testset-v1.json. Up to nine annotators; 1 and 2 name an answer, 0 is a
tie, nothing is no vote. How votes become one pair stands in ballots.py.
"""

from dpoflow.contracts.pairs import Message, PreferencePair, Source
from dpoflow.sources.formats.ballots import Ballot, Choice, decided
from dpoflow.sources.formats.messages import Format, Row, field, one_of, text
from dpoflow.sources.reasons import Quarantine

_ANNOTATORS = tuple(f"annotator{number}" for number in range(1, 10))
_ANSWERS = ("response1", "response2")
_CHOICES: tuple[Choice, ...] = ("tie", "first", "second")


def fits(row: Row) -> bool:
    """Whether there are an instruction, two answers and somebody's vote."""
    texts = all(isinstance(row.get(each), str) for each in ("instruction", *_ANSWERS))
    return texts and any(each in row for each in _ANNOTATORS)


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair with every vote; the answer that most votes name is the chosen one."""
    ballots = [
        Ballot(name, _CHOICES[one_of(row[name], (0, 1, 2), name)])
        for name in _ANNOTATORS
        if row.get(name) not in (None, "")
    ]
    if not ballots:
        raise Quarantine("missing_field", "annotator1")
    asked = text(field(row, "instruction"), "instruction")
    given = row.get("input")
    if given is not None and text(given, "input").strip():
        asked = f"{asked}\n\n{given}"
    answers = [text(field(row, each), each) for each in _ANSWERS]
    prompt = (Message(role="user", content=asked),)
    return decided(row, origin, prompt, answers, ballots, slice_field="motivation_app")


FORMAT = Format(
    name="votes",
    keys="instruction, response1, response2, annotator1 and so on (0, 1 or 2), perhaps input",
    reads=frozenset({"instruction", "input", *_ANSWERS, "motivation_app", *_ANNOTATORS}),
    fits=fits,
    convert=convert,
)
