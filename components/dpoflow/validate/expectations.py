"""Great Expectations over kept rows. Nothing else in dpoflow imports it.

Reads   tables of rows as they pass by
Gives   `Observer`: whether each expectation of a suite held, and the ids of rows that broke one;
        `suite_of`; `broken_limits`, of the data as a whole
Not     duplicates, leakage, coverage: those concern the whole set, see ledger.py

Results carry our row ids and never a row's text; nothing is sent anywhere and nothing is drawn.
The suites repeat what the checks before them promise: they are there to notice when that breaks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from dpoflow.contracts.pairs import TOKENS
from dpoflow.validate.library import (
    ColumnPairMapExpectation,
    ColumnPairMapMetricProvider,
    PandasExecutionEngine,
    ProgressBarsConfig,
    column_pair_condition_partial,
    gx,
)
from dpoflow.validate.limits import Limit

gxe: Any = gx.expectations  # built at import: type checkers see none of it
SuiteName = Literal["pairs", "ratings", "synthetic", "prompts"]


class ColumnPairValuesDiffer(ColumnPairMapMetricProvider):
    """The metric behind `ExpectColumnPairValuesToDiffer`."""

    condition_metric_name = "column_pair_values.differ"
    condition_domain_keys = ("batch_id", "table", "column_A", "column_B")
    condition_value_keys = ()

    @column_pair_condition_partial(engine=PandasExecutionEngine)  # type: ignore[untyped-decorator]
    def _pandas(cls, column_A: Any, column_B: Any, **_: Any) -> Any:  # noqa: N805 it is one
        return column_A.str.strip() != column_B.str.strip()


class ExpectColumnPairValuesToDiffer(ColumnPairMapExpectation):
    """Two texts of a row differ by more than the blanks around them."""

    map_metric = "column_pair_values.differ"


@dataclass(frozen=True)
class Bounds:
    """What the suites ask, from the spec; see contracts/spec.py."""

    max_chars: int
    max_prompt_tokens: int | None = None
    max_answer_tokens: int | None = None


def suite_of(name: SuiteName, bounds: Bounds) -> list[Any]:
    """The expectations that rows of one kind must hold."""
    filled = {
        "prompts": ["prompt_id", "asked"],
        "ratings": ["rating_id", "asked", "answer", "desirable"],
        "pairs": ["pair_id", "asked", "chosen", "rejected", "label"],
        "synthetic": ["generator", "judge"],
    }[name]
    suite: list[Any] = []
    for column in filled:
        suite.append(gxe.ExpectColumnToExist(column=column))
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=column))
    if name == "synthetic":
        return [*suite, gxe.ExpectColumnValuesToBeBetween(column="margin", min_value=0)]
    most: dict[str, int | None] = {"prompt_chars": bounds.max_chars}
    suite.append(gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "heldout"]))
    if name == "pairs":
        labels = ["preferred", "tie", "inconsistent", "invalid"]
        suite.append(gxe.ExpectColumnValuesToBeInSet(column="label", value_set=labels))
        suite.append(ExpectColumnPairValuesToDiffer(column_A="chosen", column_B="rejected"))
        suite += [
            gxe.ExpectColumnValueLengthsToBeBetween(
                column=each, min_value=1, max_value=bounds.max_chars
            )
            for each in ("chosen", "rejected")
        ]
        most |= {"prompt_tokens": bounds.max_prompt_tokens}
        most |= dict.fromkeys(("chosen_tokens", "rejected_tokens"), bounds.max_answer_tokens)
    if name == "ratings":
        suite.append(
            gxe.ExpectColumnValueLengthsToBeBetween(
                column="answer", min_value=1, max_value=bounds.max_chars
            )
        )
    suite += [
        gxe.ExpectColumnValuesToBeBetween(column=column, max_value=value)
        for column, value in most.items()
        if value is not None
    ]
    return suite


class Observer:
    """Watches tables pass and holds each of them against a suite."""

    def __init__(self, name: str, suite: Sequence[Any]) -> None:
        self.held: dict[str, bool] = {}
        """Expectation to whether it held for every row so far."""
        self.broken_by: dict[str, list[str]] = {}
        """Expectation to the ids of the first rows that broke it."""
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("rows")
        self._batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        self._suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=list(suite)))

    def look(self, table: pa.Table) -> None:
        """Hold every row of a table of pairs or prompts against the suite."""
        self.hold(frame_of(table))

    def hold(self, frame: pd.DataFrame) -> None:
        """The same of a frame that has a column `id`."""
        shape = {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["id"],
            "exclude_unexpected_values": True,
        }
        batch = self._batches.get_batch({"dataframe": frame})
        outcome = batch.validate(self._suite, result_format=shape)
        for result in outcome.results:
            name = _name(result.expectation_config)
            raised = [each for each in result.exception_info.values() if isinstance(each, dict)]
            assert not raised, f"{name} could not be evaluated: {raised[0]['exception_message']}"
            self.held[name] = self.held.get(name, True) and bool(result.success)
            if not result.success:
                found = result.result.get("unexpected_index_list") or []
                ids = [some_id for each in found for some_id in np.atleast_1d(each["id"])]
                self.broken_by.setdefault(name, []).extend(map(str, ids[:5]))


def frame_of(table: pa.Table) -> pd.DataFrame:
    """The columns that suites look at, out of a table of the contract's schema."""
    turns = table["prompt"].combine_chunks()
    offsets, said = turns.offsets.to_numpy(), turns.flatten().field("content")
    chars = pc.utf8_length(said).to_numpy()
    columns = {
        "asked": said.take(pa.array(offsets[1:] - 1)),
        "prompt_chars": np.add.reduceat(chars, offsets[:-1]),
        "split": table["split"],
    }
    if "pair_id" in table.column_names:
        quality, made = table["quality"], table["provenance"]
        columns |= {
            "id": table["pair_id"],
            "pair_id": table["pair_id"],
            "chosen": pc.struct_field(table["chosen"], ["content"]),
            "rejected": pc.struct_field(table["rejected"], ["content"]),
            "label": table["label"],
            "margin": table["margin"],
            "generator": pc.struct_field(made, ["rejected", "generator"]),
            "judge": pc.struct_field(made, ["judge"]),
            **{name: pc.struct_field(quality, [name]) for name in TOKENS},
        }
    elif "rating_id" in table.column_names:
        columns |= {
            "id": table["rating_id"],
            "rating_id": table["rating_id"],
            "answer": pc.struct_field(table["answer"], ["content"]),
            "desirable": table["desirable"],
        }
    else:
        columns |= {"id": table["prompt_id"], "prompt_id": table["prompt_id"]}
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame


def _name(config: Any) -> str:
    """`expect_column_values_to_not_be_null(chosen)`."""
    given = config.kwargs
    columns = [given[key] for key in ("column", "column_A", "column_B") if key in given]
    return f"{config.type}({', '.join(columns)})"


def broken_limits(limits: Sequence[Limit]) -> tuple[dict[str, bool], list[Limit]]:
    """Expectation to whether it holds for the data as a whole, and the limits that do not."""
    suite = [gxe.ExpectColumnValuesToNotBeNull(column=each.name) for each in limits]
    suite += [
        gxe.ExpectColumnValuesToBeBetween(column=each.name, min_value=each.low, max_value=each.high)
        for each in limits
    ]
    seen = pd.DataFrame([{"id": "data", **{each.name: each.seen for each in limits}}], dtype=object)
    observer = Observer("corpus", suite)
    observer.hold(seen)
    broken = [
        each for each in limits if any(f"({each.name})" in name for name in observer.broken_by)
    ]
    return observer.held, broken
