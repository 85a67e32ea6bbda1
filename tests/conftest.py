"""How the tests run that pytest is not told in pyproject.toml.

Reads   CI: set where a change is checked (.ci/run sets it), not where somebody works
Gives   collection without sweeping; what the property tests draw; one thread for each process
Not     how many examples a property has: that stands beside it
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of tests that run side by side, children too

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

from dpoflow.state.imports import unswept

# A new fault is found where a change is checked, on new examples each time, with a line to
# paste. Elsewhere the examples are the same each time: whoever broke nothing sees nothing break.
# Neither reads what an earlier run left in .hypothesis, and neither minds how busy the machine is.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    print_blob=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("new", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("new" if os.environ.get("CI") else "same")

if not os.environ.get("CI"):
    # Hypothesis also draws the constants of whatever modules of ours are imported by then: that
    # depends on the tests before, and with two processes on how fast they were.
    providers._get_local_constants = providers.Constants  # noqa: SLF001  # no setting does it


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collection imports torch, transformers, MLflow and kfp: two fifths of it was sweeping."""
    with unswept():
        return (yield)
