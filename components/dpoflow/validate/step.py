"""The validate step: rows to canonical pairs, and later human and synthetic pairs to one set.

Reads   pinned files (`run`); what `run` and synthesize left (`merge`)
Gives   pairs and prompts with their split, a report, every unused row with its reason
Not     formats (sources/), making pairs (synthesize/), training
"""

from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.pairs import (
    Item,
    PreferencePair,
    Prompt,
    Rating,
    Source,
    read_parquet,
    write_parquet,
    write_tables,
)
from dpoflow.contracts.results import Counts, ValidateResult
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.sources.checks import check
from dpoflow.sources.reasons import HARMLESS, Quarantine
from dpoflow.state.step import StepState
from dpoflow.validate import report as reports
from dpoflow.validate.agreement import agreement_of
from dpoflow.validate.figures import PAGE
from dpoflow.validate.ledger import Kind, Ledger, Origin, quality_columns
from dpoflow.validate.limits import Limit, limits_of
from dpoflow.validate.read import read_into
from dpoflow.validate.row import Columns, refused, row_columns

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from dpoflow.validate.expectations import Observer, SuiteName

PAIRS = "pairs.parquet"
PROMPTS = "prompts.parquet"
TRAIN = "train.parquet"
RATINGS = "ratings.parquet"
"""Beside pairs, where there are any: answers that were rated by themselves."""
_A_TEMPLATE = 20
"""Prompts of one cluster; fewer may be near by chance."""


def run(
    config: ValidateConfig,
    *,
    data: Path,
    pairs: Path,
    prompts: Path,
    report: Path,
    state: StepState,
    model: Path | None = None,
) -> ValidateResult:
    """Read what was pinned, keep what is sound, say what is not, draw the split.

    `model` is the policy: its tokenizer counts tokens. Without it nothing does.
    """
    with Ledger(state.work / "rows.sqlite", config.phone_region) as ledger:
        files = read_into(ledger, data, model, config, state.events)
        ledger.index()
        ledger.draw_sides(config.near_similarity)
        ledger.drop_duplicates()
        ledger.drop_conflicts()
        ledger.drop_old_leaks()
        if config.max_pairs is not None:
            ledger.select(config.max_pairs)
        ledger.select_replayed(config.replay_per_new)
        counts = _balanced(ledger.counts())
        facts = _measured(ledger) | {
            "files": [each.told() for each in files],
            "near": ledger.near(),
        }
        _refuse_too_little(ledger, counts, config, report, facts)
        _refuse_one_template(ledger, counts, config, report, facts)

        watched = _Watched(config)
        write_tables(watched("pairs", ledger.tables("pair")), PreferencePair, pairs / PAIRS)
        _write_ratings(watched("ratings", ledger.tables("rating")), pairs)
        write_tables(watched("prompts", ledger.tables("prompt")), Prompt, prompts / PROMPTS)
        return _conclude(
            ledger,
            counts,
            watched,
            report,
            state,
            config,
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
    with Ledger(state.work / "rows.sqlite", config.phone_region) as ledger:
        asked = (
            each for each in read_parquet(prompts / PROMPTS, Prompt) if each.split == "heldout"
        )
        ledger.add(_known(each, config, "human") for each in asked)
        given = state.events.track(read_parquet(pairs / PAIRS, PreferencePair), "human pairs")
        ledger.add(_known(each, config, "human") for each in given)
        if (pairs / RATINGS).is_file():
            rated = read_parquet(pairs / RATINGS, Rating)
            ledger.add(_known(each, config, "human") for each in rated)
        made = state.events.track(
            read_parquet(synthetic / PAIRS, PreferencePair), "synthetic pairs"
        )
        ledger.add(_made(each, config) for each in made)
        ledger.index()
        ledger.drop_not_preferred()
        ledger.drop_duplicates()
        ledger.drop_conflicts()
        ledger.drop_leaks()
        counts = _balanced(ledger.counts("pair", "rating"))
        facts = _measured(ledger)
        _refuse_too_few(ledger, counts, config, report, facts)

        watched = _Watched(config)
        for _ in watched("synthetic", ledger.tables("pair", origin="synthetic")):
            pass
        learnt = watched("pairs", ledger.tables("pair", "train"))
        write_tables(learnt, PreferencePair, training / TRAIN)
        kept_out = watched("pairs", ledger.tables("pair", "heldout"))
        write_tables(kept_out, PreferencePair, heldout / PAIRS)
        _write_ratings(watched("ratings", ledger.tables("rating", "train")), training)
        _write_ratings(watched("ratings", ledger.tables("rating", "heldout")), heldout)
        num_asked = write_parquet(ledger.heldout_prompts(), Prompt, heldout / PROMPTS)
        return _conclude(
            ledger,
            counts,
            watched,
            report,
            state,
            config,
            facts=facts,
            num_prompts=ledger.num_prompts("train"),
            num_heldout_prompts=num_asked,
            pairs_digest=ledger.digest("train"),
            kinds=("pair", "rating"),
        )


class _Watched:
    """Tables on their way to a file, seen by Great Expectations; loaded only if there are rows."""

    def __init__(self, config: ValidateConfig) -> None:
        self._config = config
        self._observers: dict[str, Observer] = {}

    def __call__(self, suite: "SuiteName", tables: "Iterator[pa.Table]") -> "Iterator[pa.Table]":
        """The same tables, held against one suite."""
        for table in tables:
            self._observer(suite).look(table)
            yield table

    def _observer(self, suite: "SuiteName") -> "Observer":
        from dpoflow.validate.expectations import Bounds, Observer, suite_of  # takes seconds

        if suite not in self._observers:
            config = self._config
            bounds = Bounds(config.max_chars, config.max_prompt_tokens, config.max_answer_tokens)
            self._observers[suite] = Observer(suite, suite_of(suite, bounds))
        return self._observers[suite]

    @property
    def held(self) -> dict[str, bool]:
        """Expectation to whether it held, in every suite that has it."""
        told: dict[str, bool] = {}
        for seen in self._observers.values():
            told |= {name: held and told.get(name, True) for name, held in seen.held.items()}
        return told

    @property
    def broken_by(self) -> dict[str, list[str]]:
        """Expectation to the first rows that broke it."""
        told: dict[str, list[str]] = {}
        for seen in self._observers.values():
            for name, ids in seen.broken_by.items():
                told[name] = [*told.get(name, []), *ids]
        return told


def _write_ratings(tables: "Iterator[pa.Table]", folder: Path) -> None:
    """A file of them where there are any: most data have none."""
    first = next(tables, None)
    if first is not None:
        write_tables(chain([first], tables), Rating, folder / RATINGS)


def _known(item: Item, config: ValidateConfig, origin: Origin) -> Columns:
    """The columns of what an earlier validate kept: its side and its measures stay."""
    columns = row_columns(item, item.source, seed=config.seed, origin=origin)
    quality = item.quality if isinstance(item, PreferencePair) else None
    return columns | (quality_columns(quality) if quality else {}) | {"side": item.split}


def _made(pair: PreferencePair, config: ValidateConfig) -> Columns:
    where = Source(dataset="synthetic", row=pair.source.row, licence=pair.source.licence)
    try:
        check(pair, max_chars=config.max_chars)
    except Quarantine as refusal:
        item = pair.model_dump_json()  # its excerpt is made where it is shown
        return {**refused(where, refusal.code, refusal.detail, None, kind="pair"), "body": item}
    # Named after what asked for it, but counted as what it is.
    return _known(pair, config, "synthetic") | {"dataset": where.dataset}


def _measured(ledger: Ledger) -> dict[str, Any]:
    """What both tasks report of the kept rows."""
    origins: dict[str, Origin | None] = {"all": None, "human": "human", "synthetic": "synthetic"}
    biases = {name: ledger.lengths(origin) for name, origin in origins.items()}
    return {
        "length_bias": {name: bias.model_dump() if bias else None for name, bias in biases.items()},
        "agreement": agreement_of(ledger.votes),
    }


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


def _refuse_one_template(
    ledger: Ledger, counts: Counts, config: ValidateConfig, report: Path, facts: dict[str, Any]
) -> None:
    """A cluster is on one side as a whole: one of nearly everything leaves nothing to train on."""
    near = facts["near"]
    size, num_prompts = near["largest_heldout"], near["of_prompts"]
    if size < _A_TEMPLATE or 2 * size <= num_prompts:
        return
    reports.write(report, ledger, counts, facts=facts)
    raise DataRejected(
        f"{size} of {num_prompts} prompts are nearly the same (such as "
        f"{next(iter(near['such_as']))}), so all of them would be held out and none trained on; "
        "put what they share into a system message (data.sources[].system), or raise "
        f"data.near_similarity ({config.near_similarity:g}): at 1 only equal ones hang together"
    )


def _refuse_too_few(
    ledger: Ledger, counts: Counts, config: ValidateConfig, report: Path, facts: dict[str, Any]
) -> None:
    num_pairs = ledger.num_kept("pair", "train") + ledger.num_kept("rating", "train")
    if num_pairs >= config.min_pairs:
        return
    reports.write(report, ledger, counts, "pair", "rating", facts=facts)
    unused = reports.reasons(ledger, counts)
    raise DataRejected(
        f"{num_pairs} training pairs are fewer than data.min_pairs ({config.min_pairs}): "
        f"{counts.num_in} pairs came in, {counts.num_kept} were kept, "
        f"{ledger.num_kept('pair', 'heldout')} of them held out{'; not used: ' if unused else ''}"
        f"{unused}; add data, let synthesize make more (its log says what became of its "
        "prompts), or lower data.min_pairs"
    )


def _limits(
    ledger: Ledger, counts: Counts, config: ValidateConfig, facts: dict[str, Any]
) -> list[Limit]:
    return list(
        limits_of(
            config,
            counts,
            findings=ledger.findings(),
            labels=ledger.labels(),
            agreement=facts["agreement"],
            bias=ledger.lengths(),
        )
    )


def _conclude(
    ledger: Ledger,
    counts: Counts,
    watched: _Watched,
    report: Path,
    state: StepState,
    config: ValidateConfig,
    *,
    facts: dict[str, Any],
    num_prompts: int,
    num_heldout_prompts: int,
    pairs_digest: str,
    kinds: tuple[Kind, ...] = (),
) -> ValidateResult:
    """Write the report, refuse where an expectation broke, and say what there is."""
    limits = _limits(ledger, counts, config, facts)
    held, broken = watched.held, list[Limit]()
    if limits:
        from dpoflow.validate.expectations import broken_limits

        of_the_whole, broken = broken_limits(limits)
        held |= of_the_whole
    facts = facts | {
        "pairs_digest": pairs_digest,
        "expectations": held,
        "thin": config.min_slice_pairs,
    }
    reports.write(report, ledger, counts, *kinds, facts=facts)
    for name, ids in watched.broken_by.items():
        raise DataRejected(f"{name} does not hold for rows {', '.join(ids[:5]) or '(all)'}")
    if broken:
        raise DataRejected(
            "; ".join(f"{each.told}, {each.asked}" for each in broken)
            + f"; look at {report / PAGE}, mend the data, or change what is asked"
        )
    result = ValidateResult(
        counts=counts,
        num_pairs=ledger.num_kept("pair", "train"),
        num_heldout_pairs=ledger.num_kept("pair", "heldout"),
        num_ratings=ledger.num_kept("rating", "train"),
        num_heldout_ratings=ledger.num_kept("rating", "heldout"),
        num_prompts=num_prompts,
        num_heldout_prompts=num_heldout_prompts,
        slices={name: sum(told.values()) for name, told in ledger.by_slice().items()},
        expectations=held,
        pairs_digest=pairs_digest,
    )
    unused = reports.reasons(ledger, counts)
    num_rated, num_heldout = result.num_ratings, result.num_heldout_ratings
    rated = f"{num_rated} rated answers, {num_heldout} held out; " if num_rated else ""
    state.events.say(
        f"{counts.num_in} rows in, {counts.num_kept} kept: {result.num_pairs} pairs to train on, "
        f"{result.num_heldout_pairs} held out; {rated}{result.num_prompts} prompts, "
        f"{result.num_heldout_prompts} held out" + (f"; not used: {unused}" if unused else "")
    )
    return result
