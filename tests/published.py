"""Published preference data, where a machine has some: it does not ship with the project."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("DPOFLOW_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")

needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(
        not FOLDER.is_dir(), reason="no published data: DPOFLOW_TEST_DATA names no folder"
    ),
]
