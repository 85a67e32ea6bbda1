"""The validate step: rows to canonical pairs, and later human and synthetic pairs to one set.

Reads   pinned files (`run`); what `run` and synthesize left (`merge`)
Gives   pairs and prompts with their split, a report, every unused row with its reason
Not     formats (sources/), making pairs (synthesize/), training
"""

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import (
    PreferencePair,
    Prompt,
    Source,
    read_parquet,
    write_parquet,
)
from dpoflow.contracts.results import Counts, ValidateResult
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.sources.reasons import HARMLESS, Quarantine
from dpoflow.state.step import StepState
from dpoflow.validate import report as reports
from dpoflow.validate.checks import check
from dpoflow.validate.excerpt import of_item
from dpoflow.validate.ledger import Ledger
from dpoflow.validate.read import read_into

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dpoflow.validate.expectations import Observer, Row, SuiteName

PAIRS = "pairs.parquet"
PROMPTS = "prompts.parquet"
TRAIN = "train.parquet"


def run(
    config: ValidateConfig,
    *,
    data: Path,
    pairs: Path,
    prompts: Path,
    report: Path,
    state: StepState,
) -> ValidateResult:
    """Read what was pinned, keep what is sound, say what is not, draw the split."""
    with Ledger(state.work / "rows.sqlite", config) as ledger:
        files = read_into(ledger, data, config, state.events)
        ledger.index()
        ledger.drop_duplicates()
        ledger.drop_conflicts()
        if config.max_pairs is not None:
            ledger.select(config.max_pairs)
        ledger.select_replayed(config.replay_per_new)
        counts = _balanced(ledger.counts())
        facts: dict[str, Any] = {"files": [each.told() for each in files]}
        _refuse_too_little(ledger, counts, config, report, facts)

        watched = _Watched(config)
        write_parquet(watched("pairs", ledger.pairs()), PreferencePair, pairs / PAIRS)
        write_parquet(watched("prompts", ledger.prompts()), Prompt, prompts / PROMPTS)
        return _conclude(
            ledger,
            counts,
            watched,
            report,
            state,
            facts=facts,
            num_prompts=ledger.num_kept("prompt", "train"),
            num_heldout_prompts=ledger.num_kept("prompt", "heldout"),
            pairs_digest=ledger.digest(),
        )


def merge(
    config: ValidateConfig,
    *,
    pairs: Path,
    prompts: Path,
    synthetic: Path,
    training: Path,
    heldout: Path,
    report: Path,
    state: StepState,
) -> ValidateResult:
    """Join human and synthetic pairs; nothing that is held out may be trained on."""
    with Ledger(state.work / "rows.sqlite", config) as ledger:
        _take_heldout_prompts(ledger, prompts / PROMPTS)
        for pair in state.events.track(read_parquet(pairs / PAIRS, PreferencePair), "human pairs"):
            ledger.add(pair, pair.source, split=pair.split)
        made = read_parquet(synthetic / PAIRS, PreferencePair)
        for pair in state.events.track(made, "synthetic pairs"):
            _take_synthetic(ledger, pair, config)
        ledger.index()
        ledger.drop_not_preferred()
        ledger.drop_duplicates()
        ledger.drop_conflicts()
        ledger.drop_leaks()
        counts = _balanced(ledger.counts("pair"))
        facts = {"length_bias": _length_bias(ledger)}
        _refuse_too_few(ledger, counts, config, report, facts)

        watched = _Watched(config)
        for _ in watched("synthetic", ledger.pairs(origin="synthetic")):
            pass
        write_parquet(watched("pairs", ledger.pairs("train")), PreferencePair, training / TRAIN)
        write_parquet(watched("pairs", ledger.pairs("heldout")), PreferencePair, heldout / PAIRS)
        num_asked = write_parquet(ledger.heldout_prompts(), Prompt, heldout / PROMPTS)
        return _conclude(
            ledger,
            counts,
            watched,
            report,
            state,
            facts=facts,
            num_prompts=ledger.num_prompts("train"),
            num_heldout_prompts=num_asked,
            pairs_digest=ledger.digest("train"),
            kind="pair",
        )


class _Watched:
    """Rows on their way to a file, seen by Great Expectations; loaded only if there are rows."""

    def __init__(self, config: ValidateConfig) -> None:
        self._max_chars = config.max_chars
        self._observers: dict[SuiteName, Observer] = {}

    def __call__(self, suite: "SuiteName", rows: "Iterator[Row]") -> "Iterator[Row]":
        """The same rows, held against one suite."""
        first = next(rows, None)
        if first is None:
            return
        from dpoflow.validate.expectations import Observer  # takes seconds

        if suite not in self._observers:
            self._observers[suite] = Observer(suite, max_chars=self._max_chars)
        yield from self._observers[suite].watch(itertools.chain([first], rows))

    @property
    def held(self) -> dict[str, bool]:
        """Expectation to whether it held, over every suite."""
        return dict(item for seen in self._observers.values() for item in seen.held.items())

    @property
    def broken_by(self) -> dict[str, list[str]]:
        """Expectation to the first rows that broke it."""
        return dict(item for seen in self._observers.values() for item in seen.broken_by.items())


def _take_heldout_prompts(ledger: Ledger, path: Path) -> None:
    for prompt in read_parquet(path, Prompt):
        if prompt.split == "heldout":
            ledger.add(prompt, prompt.source, split="heldout")


def _take_synthetic(ledger: Ledger, pair: PreferencePair, config: ValidateConfig) -> None:
    where = Source(dataset="synthetic", row=pair.source.row, licence=pair.source.licence)
    try:
        check(pair, max_chars=config.max_chars)
    except Quarantine as refusal:
        ledger.refuse(where, refusal.code, refusal.detail, of_item(pair), kind="pair")
    else:
        ledger.add(pair, where, origin="synthetic", split=pair.split)


def _balanced(counts: Counts) -> Counts:
    assert counts.balances(), f"rows were lost: {counts}"
    return counts


def _refuse_too_little(
    ledger: Ledger, counts: Counts, config: ValidateConfig, report: Path, facts: dict[str, Any]
) -> None:
    """Nothing left, or too large a share broken. The report can be read either way."""
    broken = sum(count for code, count in counts.quarantined.items() if code not in HARMLESS)
    if counts.num_kept and broken <= config.max_quarantined * counts.num_in:
        return
    reports.write(report, ledger, counts, facts=facts)
    why = (
        f"more than data.max_quarantined ({config.max_quarantined:g}) allows"
        if counts.num_kept
        else "nothing is left"
    )
    raise DataRejected(
        f"{broken} of {counts.num_in} rows cannot be used, {why}: "
        f"{reports.reasons(ledger, counts)}; "
        f"mend the rows listed in {report / reports.QUARANTINE}"
    )


def _refuse_too_few(
    ledger: Ledger, counts: Counts, config: ValidateConfig, report: Path, facts: dict[str, Any]
) -> None:
    num_pairs = ledger.num_kept("pair", "train")
    if num_pairs >= config.min_pairs:
        return
    reports.write(report, ledger, counts, facts=facts, kind="pair")
    unused = reports.reasons(ledger, counts)
    raise DataRejected(
        f"{num_pairs} training pairs are fewer than data.min_pairs ({config.min_pairs}): "
        f"{counts.num_in} pairs came in, {counts.num_kept} were kept, "
        f"{ledger.num_kept('pair', 'heldout')} of them held out{'; not used: ' if unused else ''}"
        f"{unused}; add data, let synthesize make more (its log says what became of its "
        "prompts), or lower data.min_pairs"
    )


def _length_bias(ledger: Ledger) -> dict[str, dict[str, float] | None]:
    return {
        "all": ledger.lengths(),
        "human": ledger.lengths("human"),
        "synthetic": ledger.lengths("synthetic"),
    }


def _conclude(
    ledger: Ledger,
    counts: Counts,
    watched: _Watched,
    report: Path,
    state: StepState,
    *,
    facts: dict[str, Any],
    num_prompts: int,
    num_heldout_prompts: int,
    pairs_digest: str,
    kind: Literal["pair"] | None = None,
) -> ValidateResult:
    """Write the report, refuse where an expectation broke, and say what there is."""
    reports.write(
        report,
        ledger,
        counts,
        facts={**facts, "pairs_digest": pairs_digest, "expectations": watched.held},
        kind=kind,
    )
    for name, ids in watched.broken_by.items():
        raise DataRejected(f"{name} does not hold for rows {', '.join(ids[:5]) or '(all)'}")
    result = ValidateResult(
        counts=counts,
        num_pairs=ledger.num_kept("pair", "train"),
        num_heldout_pairs=ledger.num_kept("pair", "heldout"),
        num_prompts=num_prompts,
        num_heldout_prompts=num_heldout_prompts,
        slices={name: sum(told.values()) for name, told in ledger.by_slice().items()},
        expectations=watched.held,
        pairs_digest=pairs_digest,
    )
    unused = reports.reasons(ledger, counts)
    state.events.say(
        f"{counts.num_in} rows in, {counts.num_kept} kept: {result.num_pairs} pairs to train on, "
        f"{result.num_heldout_pairs} held out; {result.num_prompts} prompts, "
        f"{result.num_heldout_prompts} held out" + (f"; not used: {unused}" if unused else "")
    )
    return result
