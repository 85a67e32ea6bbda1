"""What the spec asks of the data as a whole, beside what was seen of it.

Reads   the spec's thresholds, a settled ledger's facts
Gives   `Limit`, `limits_of`
Not     holding them: expectations.py; rows by themselves: row.py
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from dpoflow.contracts.pairs import Label
from dpoflow.contracts.results import Counts, LengthBias
from dpoflow.contracts.spec import ValidateConfig


@dataclass(frozen=True)
class Limit:
    """One number of the data, and what it may be."""

    name: str
    knob: str
    """Of the spec."""
    seen: float | None
    """None where the data have nothing to measure it on; that does not hold."""
    told: str
    """What was seen, in words."""
    low: float | None = None
    high: float | None = None

    @property
    def asked(self) -> str:
        """In words."""
        bound = f"at least {self.low:g}" if self.low is not None else f"at most {self.high:g}"
        return f"and {self.knob} asks for {bound}"


def limits_of(
    config: ValidateConfig,
    counts: Counts,
    *,
    findings: Mapping[str, int],
    labels: Mapping[str, int],
    agreement: Mapping[str, Any] | None,
    bias: LengthBias | None,
) -> Iterator[Limit]:
    """Each threshold that the spec sets."""
    for name, most in config.max_share.items():
        count = findings.get(name, 0)
        yield Limit(
            f"share_of_{name}",
            f"data.max_share.{name}",
            count / counts.num_in,
            f"{count} of {counts.num_in} rows have a finding of {name}",
            high=most,
        )
    if config.min_agreement is not None:
        kappa = agreement["fleiss_kappa"] if agreement else None
        seen = "nobody saw what another saw" if agreement is None else "chance explains every vote"
        if kappa is not None and agreement is not None:
            seen = (
                f"annotators agree with Fleiss' kappa {kappa:.3f} in {agreement['num_rows']} rows"
            )
        yield Limit("fleiss_kappa", "data.min_agreement", kappa, seen, low=config.min_agreement)
    if config.max_chosen_longer is not None:
        yield Limit(
            "chosen_longer",
            "data.max_chosen_longer",
            bias.low if bias else 0.5,
            f"chosen is the longer answer in {bias.chosen_longer:.1%} of {bias.n} pairs, surely in "
            f"{bias.low:.1%}"
            if bias
            else "no pair has answers of unlike length",
            high=config.max_chosen_longer,
        )
    if config.min_preferred is not None:
        total = sum(labels.get(name, 0) for name in get_args(Label))
        share = labels.get("preferred", 0) / total if total else None
        yield Limit(
            "preferred",
            "data.min_preferred",
            share,
            f"an answer is preferred in {labels.get('preferred', 0)} of {total} pairs",
            low=config.min_preferred,
        )
    if config.min_thumbs is not None:
        up, down = labels.get("desirable", 0), labels.get("undesirable", 0)
        yield Limit(
            "rarer_thumb",
            "data.min_thumbs",
            min(up, down) / (up + down) if up + down else None,
            f"{up} thumbs are up and {down} down",
            low=config.min_thumbs,
        )
