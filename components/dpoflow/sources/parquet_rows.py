"""Parquet files, by batches.

Reads   a .parquet file
Gives   `read`: (row number from 1, row)
Not     rows' meaning: see formats/
"""

from collections.abc import Iterator
from pathlib import Path

from dpoflow.contracts.errors import DataRejected
from dpoflow.sources.json_rows import Raw

BATCH = 512
"""Rows that are held as Python objects at a time."""


def read(path: Path, name: str) -> Iterator[tuple[int, Raw]]:
    """Rows of `path`, numbered from 1."""
    import pyarrow as pa  # 0.3 s, and JSON needs none of it
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if len(set(columns)) != len(columns):
                raise DataRejected(f"{name} has two columns of one name ({', '.join(columns)})")
            for batch in file.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataRejected(
            f"{name} is no Parquet file, or a damaged one, after row {number} "
            f"({str(error)[:200]}); fetch it again"
        ) from None
