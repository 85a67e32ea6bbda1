"""MT-Bench's figures from judgements that were made elsewhere (Zheng et al. 2023).

    judgements    FastChat's model_judgment/JUDGE_single.jsonl: question_id, model, turn (1 or 2),
                  score (1 to 10; -1 where no rating could be read in the judge's answer)
    questions     FastChat's question.jsonl: question_id, category; without it the ranges of the
                  80 published questions say the category

Reads   these files
Gives   `score_mt_bench`
Not     asking a judge
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.sources.whole import read_each, rows_of

_SHOWN_BY = "dpoflow eval mt-bench"
_UNREADABLE = -1
_HIGHEST = 10

_CATEGORIES = (
    *("writing", "roleplay", "reasoning", "math"),
    *("coding", "extraction", "stem", "humanities"),
)
"""Of ten questions each, in the order of their numbers from 81."""


class MtBenchScores(Contract):
    """Mean scores, 1 to 10."""

    model: str
    first_turn: float | None
    """None where no answer of that turn was scored."""
    second_turn: float | None
    average: float
    """Of all scores, as FastChat has it: where a turn lacks some, not the mean of both turns."""
    by_category: dict[str, float]
    n: int
    """Scores behind `average`."""
    n_questions: int
    n_unreadable: int
    """Judgements without a rating: in no figure."""


class _Judgement(NamedTuple):
    question: int
    model: str
    turn: int
    score: float
    category: str | None


def score_mt_bench(
    judgements: Path, questions: Path | None = None, model: str | None = None
) -> MtBenchScores:
    """The figures of one model. Raises DataRejected, ConfigError where `model` must be named."""
    told = read_each(rows_of(judgements), _judgement, judgements, _SHOWN_BY)
    name = _chosen({each.model for each in told}, model, judgements)
    told = [each for each in told if each.model == name]
    scored = [each for each in told if each.score != _UNREADABLE]
    if not scored:
        raise DataRejected(f"{judgements} has no score of {name} that could be read")
    named = dict(
        read_each(rows_of(questions), _question, questions, _SHOWN_BY) if questions else ()
    )
    by_category: dict[str, list[float]] = defaultdict(list)
    for each in scored:
        category = each.category or named.get(each.question) or _category(each.question)
        by_category[category].append(each.score)
    return MtBenchScores(
        model=name,
        first_turn=_mean(each.score for each in scored if each.turn == 1),
        second_turn=_mean(each.score for each in scored if each.turn != 1),
        average=fmean(each.score for each in scored),
        by_category={category: fmean(of) for category, of in sorted(by_category.items())},
        n=len(scored),
        n_questions=len({each.question for each in scored}),
        n_unreadable=len(told) - len(scored),
    )


def _chosen(there: set[str], model: str | None, path: Path) -> str:
    names = ", ".join(sorted(there)[:10])
    if model is not None and model not in there:
        raise ConfigError(f"{path} has no judgement of {model}; it has {names}")
    if model is None and len(there) > 1:
        raise ConfigError(f"{path} has {len(there)} models; name one with --model: {names}")
    return model or next(iter(there))


def _mean(scores: Iterable[float]) -> float | None:
    told: Sequence[float] = list(scores)
    return fmean(told) if told else None


def _category(question: int) -> str:
    place = (question - 81) // 10
    return _CATEGORIES[place] if 0 <= place < len(_CATEGORIES) else "other"


def _judgement(row: Any) -> _Judgement:
    if "g1_winner" in row:
        raise ValueError("a pairwise judgement; this takes single-answer grading (…_single.jsonl)")
    turn, score = int(row["turn"]), float(row["score"])
    if turn not in (1, 2):
        raise ValueError(f"turn {turn} is neither 1 nor 2")
    if score != _UNREADABLE and not 0 <= score <= _HIGHEST:
        raise ValueError(f"score {row['score']} is neither -1 nor a rating of up to {_HIGHEST}")
    category = row.get("category")
    return _Judgement(
        int(row["question_id"]), str(row["model"]), turn, score, category and str(category)
    )


def _question(row: Any) -> tuple[int, str]:
    return int(row["question_id"]), str(row["category"])
