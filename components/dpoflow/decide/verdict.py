"""The decision itself: train or skip, and the sentence that says why.

Reads   what is new, what is known of the champion, what the spec asks
Gives   `decide`, `Champion`, `lowest_rise`
Not     finding that out (news.py, champion.py)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt

from dpoflow.contracts.results import DecideResult, Reason, Thumbs
from dpoflow.contracts.spec import DecideConfig
from dpoflow.decide.news import News

_SHOWN = 3
"""Changed knobs in the sentence; the result has all of them."""


@dataclass(frozen=True)
class Champion:
    """What it was made from."""

    name: str
    """NAME/VERSION."""
    age_days: float
    changed: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Knob to what it was then, and what it is."""
    unknown: str | None = None
    """Why nobody can tell what its data held."""


def decide(config: DecideConfig, news: News, champion: Champion | None) -> DecideResult:
    """Train if any reason holds, else skip."""
    findings = list(_findings(config, news, champion))
    reasons = tuple(each.reason for each in findings if each.holds)
    trains = bool(reasons) and news.has_data
    if not news.has_data:
        told, reasons = [_Finding(None, "no source has anything at all", holds=False)], ()
    else:
        told = [each for each in findings if each.holds or not trains]
    return DecideResult(
        decision="train" if trains else "skip",
        sentence="; ".join(each.told for each in told),
        reasons=tuple(each for each in reasons if each is not None),
        champion=champion.name if champion else None,
        age_days=round(champion.age_days, 2) if champion else None,
        new_pairs=news.pairs,
        new_ratings=news.ratings,
        new_prompts=news.prompts,
        changed=dict(champion.changed) if champion else {},
        thumbs={"new": news.thumbs, "champion": news.before} if news.thumbs.of else {},
    )


@dataclass(frozen=True)
class _Finding:
    """One thing that was looked at."""

    reason: Reason | None
    told: str
    holds: bool


def _findings(config: DecideConfig, news: News, champion: Champion | None) -> Iterator[_Finding]:
    if champion is None:
        model = config.champion.removeprefix("models:/").partition("@")[0]
        yield _Finding("first", f"no version of {model} is champion yet", holds=True)
        return
    if champion.unknown is not None:
        told = f"what is new since {champion.name} cannot be known: {champion.unknown}"
        yield _Finding("unknown", told, holds=True)
        return
    num = news.pairs + news.ratings + (news.prompts if config.counts_prompts else 0)
    yield _Finding(
        "new_pairs",
        f"{_counted(config, news)} since {champion.name}, {config.min_new_pairs} are asked",
        holds=num >= config.min_new_pairs,
    )
    yield from _age(config, champion, is_something_new=num > 0)
    yield from _feedback(config, news)
    if config.changed_spec and champion.changed:
        yield _Finding("spec", f"the spec changed since: {_changes(champion.changed)}", holds=True)


def _age(config: DecideConfig, champion: Champion, *, is_something_new: bool) -> Iterator[_Finding]:
    """Old alone is no reason: from the same data comes the same model, or one that saw it twice."""
    most = config.max_age_days
    if most is None:
        return
    told = f"the champion is {_days(champion.age_days)} old, {most:g} allowed"
    is_old = champion.age_days > most
    if is_old and not is_something_new:
        told += ", and nothing is new"
    yield _Finding("age", told, holds=is_old and is_something_new)


def _feedback(config: DecideConfig, news: News) -> Iterator[_Finding]:
    most = config.more_thumbs_down
    if most is None:
        return
    now, then = news.thumbs, news.before
    if not (now.of and then.of):
        where = "new" if not now.of else "in the champion's data"
        yield _Finding("feedback", f"no feedback is {where}", holds=False)
        return
    rise = lowest_rise(then, now)
    told = (
        f"{now.down} of {now.of} new thumbs are down, {then.down} of {then.of} before: "
        f"surely {rise:+.3f} or more, {most:g} allowed"
    )
    yield _Finding("feedback", told, holds=rise > most)


def lowest_rise(before: Thumbs, now: Thumbs) -> float:
    """The lower end of the 95% interval of the difference of two shares.

    Newcombe's hybrid score interval (1998, method 10): Wilson's intervals of both, combined.
    """
    from scipy.stats import binomtest  # slow to import

    rise = now.down / now.of - before.down / before.of
    low = binomtest(now.down, now.of).proportion_ci(0.95, method="wilson").low
    high = binomtest(before.down, before.of).proportion_ci(0.95, method="wilson").high
    return float(
        rise - sqrt((now.down / now.of - low) ** 2 + (high - before.down / before.of) ** 2)
    )


def _counted(config: DecideConfig, news: News) -> str:
    parts = [f"{news.pairs:,} new {'pair' if news.pairs == 1 else 'pairs'}"]
    if news.ratings:
        parts.append(f"{news.ratings:,} rated {'answer' if news.ratings == 1 else 'answers'}")
    if news.prompts and config.counts_prompts:
        parts.append(f"{news.prompts:,} {'prompt' if news.prompts == 1 else 'prompts'}")
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _days(days: float) -> str:
    whole = f"{days:.1f}".removesuffix(".0")
    return f"{whole} {'day' if whole == '1' else 'days'}"


def _changes(changed: Mapping[str, tuple[str, str]]) -> str:
    some = [f"{knob} was {old}, is {new}" for knob, (old, new) in changed.items()]
    more = f" and {len(some) - _SHOWN} more" if len(some) > _SHOWN else ""
    return f"{', '.join(some[:_SHOWN])}{more}"
