"""Arrow files, as `datasets` saves them to disk.

Reads   a .arrow file, in Arrow's stream or file layout
Gives   `read`: (row number from 1, row)
Not     rows' meaning: see formats/
"""

from collections.abc import Iterator
from pathlib import Path

from dpoflow.contracts.errors import DataRejected
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.parquet_rows import BATCH

_FILE = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""How a whole stream ends; Arrow itself reads on without."""


def read(path: Path, name: str) -> Iterator[tuple[int, Raw]]:
    """Rows of `path`, numbered from 1."""
    import pyarrow as pa  # 0.3 s, and JSON needs none of it

    number = 0
    try:
        with pa.memory_map(str(path)) as stream:
            layout = stream.read(len(_FILE))
            stream.seek(0)
            if layout == _FILE:
                file = pa.ipc.open_file(stream)
                batches = (file.get_batch(at) for at in range(file.num_record_batches))
            else:
                stream.seek(max(0, stream.size() - len(_END)))
                if stream.read(len(_END)) != _END:
                    raise ValueError("its end is missing")  # noqa: TRY301  # told with the others
                stream.seek(0)
                file = pa.ipc.open_stream(stream)
                batches = iter(file)
            columns = file.schema.names
            if len(set(columns)) != len(columns):
                raise ValueError(f"two columns of one name: {', '.join(columns)}")  # noqa: TRY301
            for batch in batches:
                for start in range(0, batch.num_rows, BATCH):
                    for row in batch.slice(start, BATCH).to_pylist():
                        number += 1
                        yield number, row
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataRejected(
            f"{name} is no Arrow file, or a damaged one, after row {number} "
            f"({str(error)[:200]}); fetch it again"
        ) from None
