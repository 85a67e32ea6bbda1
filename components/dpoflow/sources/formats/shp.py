"""`shp`: the Stanford Human Preferences dataset (stanfordnlp/SHP on the Hub).

    {"domain": "askphysics_train", "history": "…", "human_ref_A": "…", "human_ref_B": "…",
     "labels": 1, "score_A": 34, "score_B": 12, "upvote_ratio": 0.93, …}

`history` is the post; labels is 1 where A is preferred, 0 where B is. The scores are net upvotes,
their difference is the margin, and a label that they contradict is refused.
"""

from math import isfinite

from dpoflow.contracts.pairs import Message, PreferencePair, Source
from dpoflow.sources.formats.messages import Format, Row, field, number, one_of, pair, text
from dpoflow.sources.reasons import Quarantine

_ANSWERS = ("human_ref_A", "human_ref_B")


def fits(row: Row) -> bool:
    """Whether the post and both comments are text, and a label says which is preferred."""
    return all(isinstance(row.get(each), str) for each in ("history", *_ANSWERS)) and (
        "labels" in row
    )


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair, with its margin in upvotes."""
    label = one_of(field(row, "labels"), (0, 1), "labels")
    chosen, rejected = ("A", "B") if label == 1 else ("B", "A")
    scores = {each: row.get(f"score_{each}") for each in "AB"}
    margin = None
    if None not in scores.values():
        found = {each: number(value, f"score_{each}") for each, value in scores.items()}
        margin = found[chosen] - found[rejected]
        if margin < 0 or not isfinite(margin):
            told = f"labels says {chosen}, scores {found['A']:g} and {found['B']:g}"
            raise Quarantine("scores_contradict", told)
    return pair(
        row,
        origin,
        (Message(role="user", content=text(field(row, "history"), "history")),),
        *(
            text(field(row, f"human_ref_{each}"), f"human_ref_{each}")
            for each in (chosen, rejected)
        ),
        margin=margin,
        slice_field="domain",
    )


FORMAT = Format(
    name="shp",
    keys="history, human_ref_A, human_ref_B, labels, and perhaps score_A and score_B",
    reads=frozenset({"history", *_ANSWERS, "labels", "score_A", "score_B", "domain"}),
    fits=fits,
    convert=convert,
)
