"""The rows of a spec's data as the adapters see them, for estimates.

Reads   a spec's sources
Gives   `rows_of`; `local_rows`, as they stand in a file
Not     checking rows: what an adapter cannot use is passed over here, and counted by validate;
        rows that are equal are all given
"""

import itertools
from collections.abc import Iterator
from typing import Any

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import Item, Source, with_system
from dpoflow.contracts.spec import Spec


def rows_of(spec: Spec) -> Iterator[Item]:
    """Every row that an adapter can use, on the side of the split that it draws by itself."""
    from dpoflow.sources.files import data_files, local_path, read_rows
    from dpoflow.sources.formats import registry
    from dpoflow.sources.reasons import Quarantine
    from dpoflow.validate.split import root_of, side_of

    knobs = spec.data
    for source in spec.data.sources:
        _refuse_remote(source.uri, "data.sources")
        for file in data_files(source.uri).files:
            rows = read_rows(
                file.path,
                file.name,
                max_line_mb=spec.data.max_line_mb,
                max_unpacked_gb=spec.data.max_unpacked_gb,
            )
            if source.format == "auto":
                first = list(itertools.islice(rows, registry.LOOK_AT))
                form = registry.recognise([row for _, row in first], file.name)
                rows = itertools.chain(first, rows)
            else:
                form = registry.FORMATS[source.format]
            name = source.name or local_path(source.uri).name
            for row_id, row in rows:
                try:
                    item = registry.convert(row, form, Source(dataset=name, row=row_id))
                    item = with_system(item, source.system)
                except Quarantine:
                    continue
                root = root_of(item.prompt)
                side = side_of(root, seed=knobs.seed, heldout_fraction=knobs.heldout_fraction)
                yield item.model_copy(update={"split": side})


def local_rows(uri: str, knob: str) -> Iterator[tuple[str, Any]]:
    """Where each row of plain files stands, and the row; `knob` is a list that names them."""
    from dpoflow.evaluate.suites import LARGEST_LINE_MB
    from dpoflow.sources.files import data_files, read_rows

    _refuse_remote(uri, knob)
    for file in data_files(uri).files:
        yield from read_rows(file.path, file.name, max_line_mb=LARGEST_LINE_MB)


def _refuse_remote(uri: str, knob: str) -> None:
    from dpoflow.sources.remote import is_remote, shown

    if is_remote(uri):
        raise ConfigError(
            f"{knob}[].uri {shown(uri)}: an estimate reads the data, and it is not here; download "
            f"some of it, and name that with --set '{knob}=[{{uri: FILE}}]'"
        )
