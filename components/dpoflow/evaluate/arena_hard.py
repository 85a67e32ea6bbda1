"""Arena-Hard-Auto's figures from judgements that were made elsewhere (Li et al. 2024).

    judgements    model_judgment/JUDGE/MODEL.jsonl, or the folder of one judge. v0.1: question_id,
                  model, judge, games; v2.0: uid in place of question_id, and category, baseline.
                  A game has a score: A>>B, A>B, A=B, B>A, B>>A, or null where the judge's text
                  had none. The first game has the baseline as A, the second the model.
    answers       model_answer/MODEL.jsonl, or the folder. v0.1: question_id, model_id,
                  conv_metadata; v2.0: uid, model, metadata. It has token_len, and header_count,
                  list_count, bold_count, each a number or numbers by kind.

A strong verdict (>> or <<) weighs 3. Rates are Bradley and Terry's against the baseline, of the
whole sample; intervals are of 95%, over prompts. The published programs draw battles instead;
v2.0's also shows the middle of its resamples, with 90%, and v0.1's style-controlled fit has a
penalty (C = 1).

Reads   these files
Gives   `score_arena_hard`
Not     the regression (bradley_terry.py), asking a judge, counting an answer's tokens and headers
Shapes  B battles, M models, F style features, R resamples
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.results import Interval
from dpoflow.evaluate.bradley_terry import (
    Battles,
    Floats,
    Resampled,
    Strengths,
    bootstrap,
    fit,
    percentile_interval,
    win_rate,
)
from dpoflow.evaluate.style import Style, difference, standardised
from dpoflow.sources.whole import read_each, rows_of

_SHOWN_BY = "dpoflow eval arena-hard"
_CONFIDENCE = 0.95
_STRONG = 3

_VERDICTS = {
    **dict.fromkeys(("A>>B", "B<<A"), (1.0, _STRONG)),
    **dict.fromkeys(("A>B", "B<A"), (1.0, 1)),
    **dict.fromkeys(("A=B", "B=A"), (0.5, 1)),
    **dict.fromkeys(("B>A", "A<B"), (0.0, 1)),
    **dict.fromkeys(("B>>A", "A<<B"), (0.0, _STRONG)),
}
"""What A has of it, and its weight."""

_OF_VERDICTS = set("AB<>=")
"""What the pattern takes that Arena-Hard looks for in a judge's text, in any order and number."""

STYLE = ("token_len", "header_count", "list_count", "bold_count")

Version = Literal["v0.1", "v2.0"]
_ANSWERED: Mapping[Version, tuple[str, str, str]] = {
    "v0.1": ("question_id", "model_id", "conv_metadata"),
    "v2.0": ("uid", "model", "metadata"),
}
"""Where an answer has its prompt, its model and its counts."""

T = TypeVar("T")


class ArenaHardModel(Contract):
    """Rates in percent, with intervals; their `n` is of prompts."""

    model: str
    win_rate: Interval | None
    """Against the baseline; None where no verdict could be read."""
    style_controlled: Interval | None
    """At the mean difference in style of all battles here, as published: what other models write
    moves it, and a model alone keeps its own style. None without answers."""
    at_equal_style: Interval | None
    """If it wrote as long as the baseline, with as many headers, lists and bold words."""
    n: int
    """Battles behind the rates: a prompt has two, and a strong verdict is still one."""
    n_unreadable: int
    """Games without a verdict: in no rate."""
    n_unpaired: int
    """Verdicts left out because the same prompt's other game has none: v2.0 does so."""


class ArenaHardScores(Contract):
    """Best first."""

    version: Version
    category: str | None
    baseline: str
    judges: tuple[str, ...]
    models: tuple[ArenaHardModel, ...]
    style: dict[str, float] | None
    """Log-odds of winning that a standard deviation more brings. None without answers."""


class _Judged(NamedTuple):
    """Both games of one prompt."""

    version: Version
    prompt: str
    model: str
    judge: str
    baseline: str | None
    category: str | None
    verdicts: tuple[tuple[float, int], ...]
    """What the model has of it, and its weight."""
    unreadable: int
    unpaired: int


class _Answer(NamedTuple):
    model: str
    prompt: str
    counts: tuple[float, ...] | None
    """As `STYLE` has them."""


class _Battle(NamedTuple):
    prompt: str
    model: str
    outcome: float
    weight: int


class _Fitted(NamedTuple):
    whole: Strengths
    resampled: Resampled


def score_arena_hard(
    judgements: Path,
    answers: Path | None = None,
    baseline: str | None = None,
    category: str | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> ArenaHardScores:
    """Every model's figures. Raises DataRejected, ConfigError where something must be named."""
    told = _of_category(_read(judgements, _judged), category, judgements)
    anchor = _baseline(told, baseline, judgements)
    _check(told, anchor, judgements)
    fought = [
        _Battle(each.prompt, each.model, *verdict) for each in told for verdict in each.verdicts
    ]
    if not fought:
        raise DataRejected(f"{judgements} has no verdict that could be read")
    names = [anchor, *sorted({each.model for each in told})]
    battles, prompts_B = _battles(fought, names), np.array([each.prompt for each in fought])

    def fitted(these: Battles) -> _Fitted:
        many = {"num_models": len(names), "anchor": 0}
        drawn = bootstrap(these, prompts_B, resamples=resamples, seed=seed, **many)
        return _Fitted(fit(these, **many), drawn)

    raw, controlled, equal = fitted(battles), None, None
    if answers is not None:
        style = _style(fought, anchor, answers, told[0].version)
        controlled = fitted(battles._replace(style_BF=style.standardised_BF))
        equal = _at_equal_style(controlled, style.mean_F)
    models = (
        _model(told, name, [_rate(of, at, told, name) for of in (raw, controlled, equal)])
        for at, name in enumerate(names[1:], start=1)
    )
    return ArenaHardScores(
        version=told[0].version,
        category=told[0].category,
        baseline=anchor,
        judges=tuple(sorted({each.judge for each in told})),
        models=tuple(sorted(models, key=_place)),
        style=controlled and dict(zip(STYLE, controlled.whole.style_F.tolist(), strict=True)),
    )


# ---------------------------------------------------------------- what the files say


def _read(path: Path, read: Callable[[Any], T]) -> list[T]:
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise DataRejected(
            f"{path} holds no .jsonl file; name one, or the folder that they lie in, such as "
            "model_judgment/gpt-4.1"
        )
    return [row for file in files for row in read_each(rows_of(file), read, file, _SHOWN_BY)]


def _version(row: Any) -> Version:
    return "v2.0" if "uid" in row else "v0.1"


def _judged(row: Any) -> _Judged:
    version, games = _version(row), row["games"]
    if not isinstance(games, list) or len(games) not in (1, 2):
        raise ValueError("games must be a list of one or two")
    read = [_verdict(game, swapped=at == 1) for at, game in enumerate(games)]
    verdicts = tuple(verdict for verdict in read if verdict is not None)
    # v2.0 keeps to prompts judged in both orders; v0.1 keeps what there is.
    kept = () if version == "v2.0" and len(verdicts) < len(read) else verdicts
    baseline, category = row.get("baseline"), row.get("category")
    return _Judged(
        version=version,
        prompt=str(row[_ANSWERED[version][0]]),
        model=str(row["model"]),
        judge=str(row["judge"]),
        baseline=None if baseline is None else str(baseline),
        category=None if category is None else str(category),
        verdicts=kept,
        unreadable=len(read) - len(verdicts),
        unpaired=len(verdicts) - len(kept),
    )


def _verdict(game: Any, *, swapped: bool) -> tuple[float, int] | None:
    """What the model has of it, and its weight; None where the judge came to no verdict."""
    score = None if game is None else game["score"]
    if score is None:
        return None
    if not isinstance(score, str) or not set(score) <= _OF_VERDICTS:
        raise ValueError(f"score {score!r} is neither null nor one of {', '.join(_VERDICTS)}")
    if score not in _VERDICTS:
        return None  # found in a judge's text, and no verdict: A>>>B
    of_a, weight = _VERDICTS[score]
    return (of_a if swapped else 1 - of_a), weight


def _answer(row: Any) -> _Answer:
    prompt, model, metadata = _ANSWERED[_version(row)]
    counts = row.get(metadata)
    return _Answer(
        str(row[model]),
        str(row[prompt]),
        None if counts is None else tuple(_count(counts, name) for name in STYLE),
    )


def _count(counts: Any, name: str) -> float:
    told = counts[name]
    count = float(sum(told.values()) if isinstance(told, dict) else told)
    if not 0 <= count < float("inf"):
        raise ValueError(f"{name} is {told}")
    return count


# ---------------------------------------------------------------- whether they go together


def _of_category(told: Sequence[_Judged], category: str | None, path: Path) -> Sequence[_Judged]:
    """Each has its own baseline and its own leaderboard."""
    there = {each.category for each in told}
    names = ", ".join(sorted(str(name) for name in there)[:10])
    if category is None and len(there) > 1:
        raise ConfigError(f"{path} has {len(there)} categories; name one with --category: {names}")
    if category is not None and category not in there:
        raise ConfigError(f"{path} has no category {category}; it has {names}")
    return [each for each in told if category in (None, each.category)]


def _baseline(told: Sequence[_Judged], baseline: str | None, path: Path) -> str:
    there = {each.baseline for each in told}
    if len(there) > 1:
        names = ", ".join(sorted(str(name) for name in there)[:10])
        raise DataRejected(
            f"{path} has {len(there)} baselines ({names}); give judgements against one"
        )
    (said,) = there
    if said is not None and baseline not in (None, said):
        raise ConfigError(f"{path} was judged against {said}, not {baseline}; leave --baseline out")
    if (name := said or baseline) is None:
        raise ConfigError(
            f"{path} does not say which model it was judged against; name it with --baseline "
            "(that of v0.1 is gpt-4-0314)"
        )
    return name


def _check(told: Sequence[_Judged], baseline: str, path: Path) -> None:
    if len({each.version for each in told}) > 1:
        raise DataRejected(f"{path} has judgements of v0.1 and of v2.0; give one benchmark's")
    if any(each.model == baseline for each in told):
        raise DataRejected(
            f"{path} has judgements of {baseline}, the baseline itself; take them out, or name "
            "another --baseline"
        )
    seen = set()
    for each in told:
        if (key := (each.model, each.prompt, each.judge)) in seen:
            raise DataRejected(
                f"{path} has {each.model} on prompt {each.prompt} twice by {each.judge}; keep one"
            )
        seen.add(key)


# ---------------------------------------------------------------- rates


def _battles(fought: Sequence[_Battle], names: Sequence[str]) -> Battles:
    place = {name: at for at, name in enumerate(names)}
    return Battles(
        first_B=np.array([place[each.model] for each in fought]),
        second_B=np.zeros(len(fought), dtype=np.intp),
        outcome_B=np.array([each.outcome for each in fought]),
        weight_B=np.array([each.weight for each in fought], dtype=np.float64),
    )


def _style(fought: Sequence[_Battle], baseline: str, path: Path, version: Version) -> Style:
    answers = {(each.model, each.prompt): each for each in _read(path, _answer)}
    ours_BF = np.array([_counts(answers, each.model, each.prompt, path) for each in fought])
    theirs_BF = np.array([_counts(answers, baseline, each.prompt, path) for each in fought])
    # A strong verdict is three battles to the published programs, here too.
    weight_B = np.array([each.weight for each in fought], dtype=np.float64)
    more_BF = _more(ours_BF, theirs_BF, version)
    return standardised(more_BF, weight_B, taken=int(version == "v2.0"))


def _counts(
    answers: Mapping[tuple[str, str], _Answer], model: str, prompt: str, path: Path
) -> tuple[float, ...]:
    answer = answers.get((model, prompt))
    if answer is None:
        raise DataRejected(
            f"{path} has no answer of {model} to prompt {prompt}; give the answers of every model "
            "and of the baseline, or leave --answers out"
        )
    if answer.counts is None:
        raise DataRejected(
            f"{path} has no {', '.join(STYLE)} of {model}'s answer to prompt {prompt}; "
            "Arena-Hard's add_markdown_info.py adds them"
        )
    return answer.counts


def _more(ours_BF: Floats, theirs_BF: Floats, version: Version) -> Floats:
    """To v2.0 headers, lists and bold words are those of each token."""
    if version == "v0.1":
        return difference(ours_BF, theirs_BF)
    one = np.array([0.0, *(1.0 for _ in STYLE[1:])])
    return difference(_of_each_token(ours_BF), _of_each_token(theirs_BF), one)


def _of_each_token(counts_BF: Floats) -> Floats:
    return np.hstack([counts_BF[:, :1], counts_BF[:, 1:] / np.maximum(counts_BF[:, :1], 1)])


def _at_equal_style(fitted: _Fitted, mean_F: Floats) -> _Fitted:
    """The same fit, told where styles do not differ rather than at their mean difference."""
    whole, (strength_RM, style_RF) = fitted
    return _Fitted(
        whole._replace(strength_M=whole.strength_M - whole.style_F @ mean_F),
        Resampled(strength_RM - (style_RF @ mean_F)[:, None], style_RF),
    )


def _rate(fitted: _Fitted | None, at: int, told: Sequence[_Judged], name: str) -> Interval | None:
    if fitted is None or np.isnan(fitted.whole.strength_M[at]):
        return None
    drawn_R = 100 * win_rate(fitted.resampled.strength_RM[:, at])
    low, high = percentile_interval(drawn_R, _CONFIDENCE)
    return Interval(
        value=100 * float(win_rate(fitted.whole.strength_M[at])),
        low=low,
        high=high,
        n=len({each.prompt for each in told if each.model == name and each.verdicts}),
    )


def _model(told: Sequence[_Judged], name: str, rates: Sequence[Interval | None]) -> ArenaHardModel:
    own = [each for each in told if each.model == name]
    raw, controlled, equal = rates
    return ArenaHardModel(
        model=name,
        win_rate=raw,
        style_controlled=controlled,
        at_equal_style=equal,
        n=sum(len(each.verdicts) for each in own),
        n_unreadable=sum(each.unreadable for each in own),
        n_unpaired=sum(each.unpaired for each in own),
    )


def _place(model: ArenaHardModel) -> tuple[float, str]:
    return -model.win_rate.value if model.win_rate else 1.0, model.model
