"""Great Expectations, without what it would bring along unused.

On import it tries clients of SQL databases and of clouds, and goes on where they are missing: an
eighth of its time. It cannot do without altair, scipy, pandas and all of its own expectations.

Gives   the names of Great Expectations that expectations.py needs
"""

import os

from dpoflow.state.imports import load

os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import: it would report home

load(
    "great_expectations",
    without=("sqlalchemy", "boto3", "google.api_core", "google.auth", "google.cloud"),
)

import great_expectations as gx
from great_expectations.data_context.types.base import ProgressBarsConfig
from great_expectations.execution_engine.pandas_execution_engine import PandasExecutionEngine
from great_expectations.expectations.expectation import ColumnPairMapExpectation
from great_expectations.expectations.metrics.map_metric_provider import (  # type: ignore[attr-defined]
    ColumnPairMapMetricProvider,
    column_pair_condition_partial,
)

__all__ = [
    "ColumnPairMapExpectation",
    "ColumnPairMapMetricProvider",
    "PandasExecutionEngine",
    "ProgressBarsConfig",
    "column_pair_condition_partial",
    "gx",
]
