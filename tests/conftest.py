"""What holds for every test: who draws examples, how many threads, what collection costs.

Property tests draw the same examples in each run of `make test`: a newcomer's run is not the place
where a new fault is found. In CI (the variable CI is set) they draw others each time, and a failure
prints the lines that draw it again. Neither has a limit on time, which would hang on the machine.
"""

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # processes of tests run side by side: one thread each

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from dpoflow.state.imports import unswept

_SLOW = [HealthCheck.too_slow]  # says how busy the machine is
for name, is_fixed in (("same", True), ("random", False)):
    settings.register_profile(
        name,
        deadline=None,
        derandomize=is_fixed,  # said for both: where CI is set hypothesis has defaults of its own
        database=None,
        print_blob=True,
        suppress_health_check=_SLOW,
    )
settings.load_profile("random" if os.environ.get("CI") else "same")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import torch, transformers, MLflow and kfp without sweeping, which took two fifths of it."""
    with unswept():
        return (yield)
