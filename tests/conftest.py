"""Collection imports torch, transformers, MLflow and kfp: two fifths of it went into sweeping."""

from collections.abc import Generator

import pytest

from dpoflow.state.imports import unswept


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with unswept():
        return (yield)
