"""Great Expectations over kept rows. Nothing else in dpoflow imports it.

Reads   rows as they pass by, in chunks
Gives   `Observer`: whether each expectation of a suite held, and the ids of rows that broke one
Not     duplicates, leakage, coverage: those concern the whole set, see ledger.py

Results carry our row ids and never a row's text; nothing is sent anywhere and nothing is drawn.
The suites repeat what the checks before them promise: they are there to notice when that breaks.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import: it would report home

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (  # type: ignore[attr-defined]
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)

from dpoflow.contracts.pairs import PreferencePair, Prompt

gxe: Any = gx.expectations  # built at import: type checkers see none of it
SuiteName = Literal["pairs", "synthetic", "prompts"]
Row = TypeVar("Row", PreferencePair, Prompt)
CHUNK = 25_000
"""Rows in one data frame: a million pairs in chunks of this size took 838 MB instead of 3 GB."""


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


def _suite(name: SuiteName, max_chars: int) -> list[Any]:
    filled = {
        "prompts": ["prompt_id", "asked"],
        "pairs": ["pair_id", "asked", "chosen", "rejected", "label"],
        "synthetic": ["generator", "judge"],
    }[name]
    suite: list[Any] = []
    for column in filled:
        suite.append(gxe.ExpectColumnToExist(column=column))
        suite.append(gxe.ExpectColumnValuesToNotBeNull(column=column))
    if name == "synthetic":
        return [*suite, gxe.ExpectColumnValuesToBeBetween(column="margin", min_value=0)]
    suite.append(gxe.ExpectColumnValuesToBeInSet(column="split", value_set=["train", "heldout"]))
    suite.append(gxe.ExpectColumnValuesToBeBetween(column="prompt_chars", max_value=max_chars))
    if name == "pairs":
        labels = ["preferred", "tie", "inconsistent", "invalid"]
        suite.append(gxe.ExpectColumnValuesToBeInSet(column="label", value_set=labels))
        suite.append(ExpectColumnPairValuesToDiffer(column_A="chosen", column_B="rejected"))
        suite += [
            gxe.ExpectColumnValueLengthsToBeBetween(column=each, min_value=1, max_value=max_chars)
            for each in ("chosen", "rejected")
        ]
    return suite


class Observer:
    """Watches rows pass and holds each chunk of them against a suite."""

    def __init__(self, name: SuiteName, *, max_chars: int, chunk: int = CHUNK) -> None:
        self.held: dict[str, bool] = {}
        """Expectation to whether it held for every row so far."""
        self.broken_by: dict[str, list[str]] = {}
        """Expectation to the ids of the first rows that broke it."""
        self._chunk, self._rows = chunk, list[dict[str, Any]]()
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        source = context.data_sources.add_pandas("rows")
        self._batches = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name)
        self._suite = context.suites.add(
            gx.ExpectationSuite(name=name, expectations=_suite(name, max_chars))
        )

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The same rows; what they showed is in `held` once the last has passed."""
        for row in rows:
            self._rows.append(_columns(row))
            if len(self._rows) == self._chunk:
                self._validate()
            yield row
        if self._rows:
            self._validate()

    def _validate(self) -> None:
        frame, self._rows = pd.DataFrame(self._rows), []
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


def _columns(row: PreferencePair | Prompt) -> dict[str, Any]:
    shared = {
        "asked": row.prompt[-1].content,
        "prompt_chars": sum(len(turn.content) for turn in row.prompt),
        "split": row.split,
    }
    if isinstance(row, Prompt):
        return {"id": row.prompt_id, "prompt_id": row.prompt_id, **shared}
    made = row.provenance
    return {
        "id": row.pair_id,
        "pair_id": row.pair_id,
        **shared,
        "chosen": row.chosen.content,
        "rejected": row.rejected.content,
        "label": row.label,
        "margin": row.margin,
        "generator": made.rejected.generator if made else None,
        "judge": made.judge if made else None,
    }


def _name(config: Any) -> str:
    """`expect_column_values_to_not_be_null(chosen)`."""
    given = config.kwargs
    columns = [given[key] for key in ("column", "column_A", "column_B") if key in given]
    return f"{config.type}({', '.join(columns)})"
