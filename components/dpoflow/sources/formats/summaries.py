"""`summaries`: comparisons of "Learning to summarize from human feedback" (Stiennon et al. 2020).

    {"info": {"post": "…", "title": "…", "subreddit": "…"},   or {"article": "…"}
     "summaries": [{"text": "…"}, {"text": "…"}], "choice": 0, "worker": "…",
     "extra": {"confidence": 7}}

openai/summarize_from_feedback, `comparisons`. The prompt is laid out as the paper's: subreddit,
title and post, or the article, and `TL;DR:`. `choice` is the place of the preferred summary; the
worker's vote is kept, with the confidence (1 to 9) as its score.
"""

from collections.abc import Mapping

from dpoflow.contracts.pairs import Message, PreferencePair, Source, Vote
from dpoflow.sources.formats.messages import Format, Row, field, number, one_of, pair, text
from dpoflow.sources.reasons import Quarantine


def fits(row: Row) -> bool:
    """Whether it has two summaries of something, and a choice."""
    given = row.get("summaries")
    two = isinstance(given, list) and len(given) == 2
    return two and isinstance(row.get("info"), Mapping) and "choice" in row


def convert(row: Row, origin: Source) -> PreferencePair:
    """The row as a pair with one vote."""
    choice = one_of(field(row, "choice"), (0, 1), "choice")
    texts = []
    for at, each in enumerate(_two(field(row, "summaries"))):
        if not isinstance(each, Mapping):
            raise Quarantine("wrong_type", f"summaries[{at}] is no object")
        texts.append(text(field(each, "text"), f"summaries[{at}].text"))
    worker = row.get("worker")
    extra = row.get("extra")
    sure = extra.get("confidence") if isinstance(extra, Mapping) else None
    vote = Vote(
        annotator="human" if worker is None else text(worker, "worker"),
        verdict="chosen",
        score=None if sure is None else number(sure, "extra.confidence"),
    )
    asked = Message(role="user", content=_prompt(field(row, "info")))
    return pair(row, origin, (asked,), texts[choice], texts[1 - choice], votes=(vote,))


def _two(given: object) -> list[object]:
    if not isinstance(given, list) or len(given) != 2:
        raise Quarantine("wrong_type", "summaries is no list of two")
    return given


def _prompt(info: object) -> str:
    if not isinstance(info, Mapping):
        raise Quarantine("wrong_type", "info is no object")
    if info.get("article") is not None:
        return f"Article:\n{text(info['article'], 'info.article')}\n\nTL;DR:"
    parts = {
        each: text(field(info, each), f"info.{each}") for each in ("subreddit", "title", "post")
    }
    return (
        f"SUBREDDIT: r/{parts['subreddit']}\n\nTITLE: {parts['title']}\n\n"
        f"POST: {parts['post']}\n\nTL;DR:"
    )


FORMAT = Format(
    name="summaries",
    keys="info (post, title, subreddit or article), summaries (two), choice, worker",
    reads=frozenset({"info", "summaries", "choice", "worker", "extra", "slice"}),
    fits=fits,
    convert=convert,
)
