"""A pytest plugin under which a skipped test fails: `-p tests.no_skips`.

Reads   the outcome of each test and each module's collection
Gives   a failure that repeats the reason it was skipped for
Not     expected failures (xfail), and tests marked `data` while DPOFLOW_TEST_DATA names no folder
"""

import os
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip in a test or its fixtures."""
    report = yield
    excused = item.get_closest_marker("data") and not os.environ.get("DPOFLOW_TEST_DATA")
    if report.skipped and not hasattr(report, "wasxfail") and not excused:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A skip of a whole module, before it has any test to be marked."""
    report = yield
    if report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    report.outcome = "failed"
    report.longrepr = f"no test may skip here, and this one did. {reason}"
