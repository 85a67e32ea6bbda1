"""What is in some data and was not in others: preferences, ratings and prompts, each counted once.

Reads   folders of pinned data
Gives   `news_of`, `News`
Not     what is wrong with a row beyond its own texts: validate looks at that, and takes longer

Rows are known by their ids, which are made of their texts, so a file that was renamed, sorted anew
or delivered twice brings nothing new. Ids wait in a scratch SQLite file, and a file that both have
is no news and is read only to know its rows again elsewhere: memory does not grow with rows.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dpoflow.contracts.pairs import Item, PreferencePair, Rating, Source, with_system
from dpoflow.contracts.results import Thumbs
from dpoflow.contracts.spec import DecideConfig
from dpoflow.sources.checks import check
from dpoflow.sources.formats import registry
from dpoflow.sources.pinned import DataRole, Pinned, read_pinned
from dpoflow.sources.pinned_rows import format_of, rows_of
from dpoflow.sources.reasons import Quarantine
from dpoflow.state.events import Events

_BATCH = 1000
_NEW, _EARLIER, _THEN = range(3)
"""When a row came: since the champion, before its data were pinned, and with these."""
_AGES: dict[DataRole, int] = {"new": _THEN, "replayed": _THEN, "known": _EARLIER}
"""Of files in the champion's data."""
_NONE = Thumbs(down=0, of=0)


@dataclass(frozen=True)
class News:
    """What the champion's data did not hold."""

    pairs: int = 0
    """With a preference; ties and disputes teach nothing."""
    ratings: int = 0
    prompts: int = 0
    """Without an answer."""
    has_data: bool = True
    """Whether there are new files or known ones at all."""
    thumbs: Thumbs = _NONE
    """Of the new ratings."""
    before: Thumbs = _NONE
    """Of the ratings that came with the champion's data; if none did, of those known before."""


def news_of(
    data: Path, before: Path | None, config: DecideConfig, scratch: Path, events: Events
) -> News:
    """What `data` holds and `before` did not; all of it where there is no before."""
    here = _files(data, ("new",))
    known = _files(before, tuple(_AGES)) if before else {}
    fresh = [each for key, each in here.items() if key not in known]
    if not fresh:
        return News(has_data=bool(here))
    with _table(scratch) as db:
        for each in fresh:
            _read(db, data, each, config, events, age=_NEW)
        if before is not None and _any(db):
            for each in known.values():
                _read(db, before, each, config, events, age=_AGES[each.role])
        return _counted(db)


def _files(folder: Path, roles: tuple[DataRole, ...]) -> dict[tuple[str | None, ...], Pinned]:
    """Those of some roles, by all that the ids of their rows hang on."""
    return {
        (each.sha256, each.format, each.system): each
        for each in read_pinned(folder)
        if each.role in roles
    }


@contextlib.contextmanager
def _table(path: Path) -> Iterator[sqlite3.Connection]:
    path.unlink(missing_ok=True)  # what a killed attempt left
    db = sqlite3.connect(path, isolation_level=None)
    try:
        db.execute("PRAGMA journal_mode = OFF")  # a killed attempt starts over
        db.execute("PRAGMA synchronous = OFF")
        db.execute("CREATE TABLE seen (kind TEXT, id BLOB, down INTEGER, age INTEGER)")
        db.execute("BEGIN")
        yield db
    finally:
        db.close()
        path.unlink(missing_ok=True)


def _read(
    db: sqlite3.Connection,
    folder: Path,
    pinned: Pinned,
    config: DecideConfig,
    events: Events,
    *,
    age: int,
) -> None:
    some = list[tuple[str, bytes, int, int]]()
    for item in _items(folder, pinned, config, events):
        some.append((*_known_by(item), age))
        if len(some) == _BATCH:
            db.executemany("INSERT INTO seen VALUES (?, ?, ?, ?)", some)
            some = []
    db.executemany("INSERT INTO seen VALUES (?, ?, ?, ?)", some)


def _items(folder: Path, pinned: Pinned, config: DecideConfig, events: Events) -> Iterator[Item]:
    """What can be learnt from; a row that is broken by itself is nothing."""
    rows = rows_of(
        folder, pinned, max_line_mb=config.max_line_mb, max_unpacked_gb=config.max_unpacked_gb
    )
    form, rows = format_of(pinned, rows)
    origin = Source(dataset=pinned.source, row="", licence=pinned.licence)
    for _, row in events.track(rows, f"count {ascii(pinned.name)[1:-1]}"):
        with contextlib.suppress(Quarantine):
            item = with_system(registry.convert(row, form, origin), pinned.system)
            check(item, max_chars=config.max_chars)
            if not isinstance(item, PreferencePair) or item.label == "preferred":
                yield item


def _known_by(item: Item) -> tuple[str, bytes, int]:
    if isinstance(item, PreferencePair):
        return "pair", bytes.fromhex(item.pair_id), 0
    if isinstance(item, Rating):
        return "rating", bytes.fromhex(item.rating_id), int(not item.desirable)
    return "prompt", bytes.fromhex(item.prompt_id), 0


def _any(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM seen LIMIT 1").fetchone() is not None


def _counted(db: sqlite3.Connection) -> News:
    found = db.execute(
        "SELECT kind, age, count(*), sum(down) FROM"
        " (SELECT kind, max(age) AS age, max(down) AS down FROM seen GROUP BY kind, id)"
        " GROUP BY kind, age"
    )
    told = {(kind, age): (num, down) for kind, age, num, down in found}

    def thumbs(age: int) -> Thumbs:
        num, down = told.get(("rating", age), (0, 0))
        return Thumbs(down=down, of=num)

    then = thumbs(_THEN)
    return News(
        pairs=told.get(("pair", _NEW), (0, 0))[0],
        ratings=told.get(("rating", _NEW), (0, 0))[0],
        prompts=told.get(("prompt", _NEW), (0, 0))[0],
        thumbs=thumbs(_NEW),
        before=then if then.of else thumbs(_EARLIER),
    )
