"""Every row of a run of validate, on disk: what came in, and what became of it.

Reads   columns that row.py made, of rows that are sound and of rows that are not
Gives   `Ledger`: settles what only the whole set shows, then hands rows out in order of their id
Not     adapters, checks of one row, expectations

A scratch SQLite file in the step's work folder: memory does not grow with rows. A row is kept while
its `code` is null; the first code it gets stays.
"""

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dpoflow.contracts.pairs import (
    TOKENS,
    Item,
    Message,
    PreferencePair,
    Prompt,
    Quality,
    Rating,
    Split,
    json_table,
    prompt_digest,
)
from dpoflow.contracts.results import Counts, LengthBias
from dpoflow.lengths import length_bias
from dpoflow.validate import excerpt
from dpoflow.validate.findings import HIDDEN
from dpoflow.validate.near import clusters
from dpoflow.validate.private import is_private
from dpoflow.validate.split import asked, root_of

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["pair", "rating", "prompt"]
Origin = Literal["human", "synthetic", "replayed"]
CHUNK = 25_000
"""Rows in one table on their way out."""
_CHUNK_BYTES = 64 << 20

_COLUMNS = {
    "seq": "INTEGER PRIMARY KEY",
    "dataset": "TEXT",
    "row": "TEXT",
    "origin": "TEXT",
    "kind": "TEXT",
    "id": "TEXT",
    "prompt_id": "TEXT",
    "asked": "TEXT",  # the prompt without case and blanks
    "clash": "TEXT",  # prompt and both answers, whichever was chosen
    "rank": "TEXT",
    "label": "TEXT",
    "decided": "INTEGER",  # 1 where somebody said what is good or bad: such rows are trained on
    "side": "TEXT",
    "slice": "TEXT",
    "bare": "INTEGER",  # 1 for a prompt without an answer
    "chosen_chars": "INTEGER",
    "rejected_chars": "INTEGER",
    **dict.fromkeys(TOKENS, "INTEGER"),
    "language": "TEXT",
    "findings": "TEXT",  # JSON
    "votes": "TEXT",  # JSON: annotator to what they said
    "root": "TEXT",  # how the conversation begins
    "plain": "TEXT",  # the whole conversation; see near.py
    "cluster": "TEXT",
    "body": "TEXT",
    "code": "TEXT",
    "detail": "TEXT",
    "excerpt": "TEXT",
    "looked_at": "INTEGER",  # 1 where texts were searched for what is private
}
_TABLE = f"CREATE TABLE rows ({', '.join(f'{name} {kind}' for name, kind in _COLUMNS.items())})"
_EARLIER = (
    "CREATE TABLE earlier (prompt_id TEXT, root TEXT, plain TEXT, kept_out INTEGER, learnt INTEGER)"
)
_INSERT = f"INSERT INTO rows VALUES ({', '.join(f':{name}' for name in _COLUMNS)})"  # noqa: S608
_NOTHING = dict.fromkeys(_COLUMNS)
_MODELS: dict[Kind, type[Item]] = {"pair": PreferencePair, "rating": Rating, "prompt": Prompt}
_REFUSED = "dataset, row, code, coalesce(detail, ''), excerpt, kind, body, looked_at"
_QUALITY = ("chosen_chars", "rejected_chars", *TOKENS, "language", "findings", "cluster")


@dataclass(frozen=True)
class Refused:
    """One row of the quarantine list."""

    dataset: str
    row: str
    code: str
    detail: str
    excerpt: str


class Ledger:
    """One table of rows; see the module."""

    def __init__(self, path: Path, phone_region: str) -> None:
        path.unlink(missing_ok=True)  # what a killed attempt left
        self._path, self._region = path, phone_region
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")  # a killed attempt starts over
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(_TABLE)
        self._db.execute(_EARLIER)
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)  # what it held is in the outputs by now

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows by the names of their columns; an absent one is null."""
        self._db.executemany(_INSERT, ({**_NOTHING, **row} for row in rows))

    def remember(self, prompt: tuple[Message, ...], *, kept_out: bool) -> None:
        """A prompt that an earlier version was tested with, or learnt from: no row of this run."""
        values = (prompt_digest(prompt), root_of(prompt), asked(prompt))
        self._db.execute(
            "INSERT INTO earlier VALUES (?, ?, ?, ?, ?)", (*values, kept_out, not kept_out)
        )

    def index(self) -> None:
        """Once, after the last row and before any question about the whole set."""
        self._db.execute("CREATE INDEX by_id ON rows (kind, id)")
        self._db.execute("CREATE INDEX by_clash ON rows (clash)")
        self._db.execute("CREATE INDEX by_asked ON rows (asked, side)")

    def draw_sides(self, near_similarity: float) -> None:
        """A cluster is held out as soon as one of its prompts is drawn; see split.py.

        Rows that are not kept count, too: what they joined stays joined when they are mended. A
        prompt that was on a side before stays there, and what is near it goes there, too; what is
        near prompts of both sides can be on neither, and is dropped like what is near an old pair.
        """
        self._db.execute(
            "CREATE TABLE prompts AS SELECT prompt_id, min(seq) AS seq, root, plain,"
            " max(drawn) AS drawn, max(old) AS old, max(kept_out) AS kept_out,"
            " max(learnt) AS learnt, NULL AS side, NULL AS cluster FROM ("
            "SELECT prompt_id, seq, root, plain, side = 'heldout' AS drawn,"
            " origin = 'replayed' AS old, 0 AS kept_out, 0 AS learnt FROM rows"
            " WHERE plain IS NOT NULL UNION ALL"
            " SELECT prompt_id, NULL, root, plain, 0, 0, kept_out, learnt FROM earlier)"
            " GROUP BY prompt_id ORDER BY length(plain), prompt_id"
        )
        (num,) = self._db.execute("SELECT count(*) FROM prompts").fetchone()
        above = clusters(
            self._texts,
            self._text,
            near_similarity,
            self._begun_alike(num),
            self._path.with_suffix(".near"),
        )
        known = self._db.execute("SELECT drawn, old, kept_out, learnt FROM prompts ORDER BY rowid")
        own: NDArray[np.bool_] = np.fromiter(known, np.dtype((bool, 4)), num)
        whole, sizes = np.zeros((num, 4), bool), np.bincount(above, minlength=num)
        np.logical_or.at(whole, above, own)
        heldout, old, barred = _sides(own, whole[above])
        self._db.executemany(
            "UPDATE prompts SET side = ?, old = ?, kept_out = ?, cluster ="
            " (SELECT substr(prompt_id, 1, 16) FROM prompts WHERE rowid = ?) WHERE rowid = ?",
            (
                (
                    "heldout" if heldout[at] else "train",
                    bool(old[at]),
                    bool(barred[at]),
                    top + 1 if sizes[top] > 1 else None,
                    at + 1,
                )
                for at, top in enumerate(above.tolist())
            ),
        )
        self._db.execute("CREATE UNIQUE INDEX by_prompt ON prompts (prompt_id)")
        self._db.execute(
            "UPDATE rows SET side = iif(origin = 'replayed', 'train', p.side), cluster = p.cluster"
            " FROM prompts p WHERE p.prompt_id = rows.prompt_id"
        )

    def _begun_alike(self, num: int) -> NDArray[np.int64]:
        """For each prompt the first whose conversation begins the same way."""
        roots = self._db.execute("SELECT substr(root, 1, 16) FROM prompts ORDER BY rowid")
        keys = np.fromiter((int(root, 16) for (root,) in roots), np.uint64, num)
        _, first, which = np.unique(keys, return_index=True, return_inverse=True)
        return first[which].astype(np.int64)

    def _texts(self) -> Iterator[str]:
        """Every prompt, plain, the shortest first."""
        yield from (
            text for (text,) in self._db.execute("SELECT plain FROM prompts ORDER BY rowid")
        )

    @lru_cache(maxsize=4096)  # noqa: B019 a ledger lives as long as its step
    def _text(self, at: int) -> str:
        query = "SELECT plain FROM prompts WHERE rowid = ?"
        return str(self._db.execute(query, (at + 1,)).fetchone()[0])

    def drop_old_leaks(self) -> None:
        """What would be held out and is near an old pair: the policy may have learnt it already.

        And an old pair that is near what was held out before: it must not be learnt now.
        """
        self._db.execute(
            "UPDATE rows SET code = 'leakage', detail = 'near an old pair' WHERE code IS NULL"
            " AND side = 'heldout' AND prompt_id IN (SELECT prompt_id FROM prompts WHERE old)"
        )
        self._db.execute(
            "UPDATE rows SET code = 'leakage', detail = 'held out before' WHERE code IS NULL"
            " AND side = 'train' AND prompt_id IN (SELECT prompt_id FROM prompts WHERE kept_out)"
        )

    def drop_not_preferred(self) -> None:
        """Pairs that no judge or person decided: not for training."""
        self._db.execute(
            "UPDATE rows SET code = 'not_preferred', detail = label"
            " WHERE code IS NULL AND kind = 'pair' AND label <> 'preferred'"
        )

    def drop_duplicates(self) -> None:
        """Of equal rows the first stays that decides and, of prompts, that has a human's answer."""
        self._db.execute(
            "UPDATE rows SET code = 'duplicate', detail = 'of ' || found.first FROM (SELECT seq,"
            "  row_number() OVER same AS nth, first_value(row) OVER same AS first"
            "  FROM rows WHERE code IS NULL"
            "  WINDOW same AS (PARTITION BY kind, id ORDER BY decided DESC, bare, seq)) AS found"
            " WHERE found.seq = rows.seq AND found.nth > 1"
        )

    def drop_conflicts(self) -> None:
        """A over B here and B over A there: neither can be right, so neither is used."""
        self._db.execute(
            "UPDATE rows SET code = 'conflicting', detail = (SELECT 'with ' || o.row FROM rows o"
            "  WHERE o.clash = rows.clash AND o.id <> rows.id ORDER BY o.seq LIMIT 1)"
            " WHERE code IS NULL AND decided AND clash IN"
            "  (SELECT clash FROM rows WHERE code IS NULL AND decided"
            "  GROUP BY clash HAVING count(DISTINCT id) > 1)"
        )

    def drop_leaks(self) -> None:
        """Training pairs whose prompt is held out, also in another case or with other blanks."""
        self._db.execute(
            "UPDATE rows SET code = 'leakage', detail = 'held out: ' || held.row"
            " FROM (SELECT asked, row, min(seq) FROM rows WHERE side = 'heldout' AND code IS NULL"
            "  GROUP BY asked) AS held"
            " WHERE held.asked = rows.asked AND code IS NULL AND kind <> 'prompt'"
            " AND side = 'train'"
        )

    def select(self, max_pairs: int) -> None:
        """Keep the pairs with the lowest seeded hashes: data that is added displaces few."""
        self._db.execute(
            "UPDATE rows SET code = 'not_selected'"
            " WHERE code IS NULL AND decided AND origin <> 'replayed'"
            " AND seq NOT IN (SELECT seq FROM rows"
            "  WHERE code IS NULL AND decided AND origin <> 'replayed'"
            "  ORDER BY rank LIMIT ?)",
            (max_pairs,),
        )

    def select_replayed(self, per_new: float) -> None:
        """Of old pairs, those with the lowest seeded hashes: so many for each new one."""
        (new,) = self._db.execute(
            "SELECT count(*) FROM rows WHERE code IS NULL AND decided AND origin <> 'replayed'"
        ).fetchone()
        self._db.execute(
            "UPDATE rows SET code = 'not_replayed'"
            " WHERE code IS NULL AND kind <> 'prompt' AND origin = 'replayed' AND seq NOT IN"
            "  (SELECT seq FROM rows WHERE code IS NULL AND decided AND origin = 'replayed'"
            "  ORDER BY rank LIMIT ?)",
            (int(per_new * new),),
        )

    def counts(self, *kinds: Kind) -> Counts:
        """What came in and what became of it; of some kinds, or of all rows."""
        query = (
            "SELECT code, count(*) FROM rows WHERE ? IS NULL OR instr(?, kind)"
            " GROUP BY code ORDER BY count(*) DESC, code"
        )
        some = " ".join(kinds) or None
        by_code = dict(self._db.execute(query, (some, some)).fetchall())
        num_in = sum(by_code.values())
        return Counts(num_in=num_in, num_kept=by_code.pop(None, 0), quarantined=by_code)

    def num_kept(self, kind: Kind, side: Split) -> int:
        """Kept rows of one kind on one side."""
        query = "SELECT count(*) FROM rows WHERE code IS NULL AND kind = ? AND side = ?"
        return int(self._db.execute(query, (kind, side)).fetchone()[0])

    def num_prompts(self, side: Split) -> int:
        """Different prompts among the kept rows of one side."""
        query = "SELECT count(DISTINCT prompt_id) FROM rows WHERE code IS NULL AND side = ?"
        return int(self._db.execute(query, (side,)).fetchone()[0])

    def tables(
        self, kind: Kind, side: Split | None = None, *, origin: Origin | None = None
    ) -> "Iterator[pa.Table]":
        """Kept rows in order of their id, with their side and what was measured of them."""
        query = (
            f"SELECT body, side, {', '.join(_QUALITY)} FROM rows WHERE code IS NULL AND kind = ?"  # noqa: S608
            " AND (? IS NULL OR side = ?) AND (? IS NULL OR origin = ?) ORDER BY id"
        )
        some, size = list[tuple[Any, ...]](), 0
        for row in self._db.execute(query, (kind, side, side, origin, origin)):
            some.append(row)
            size += len(row[0])
            if len(some) == CHUNK or size > _CHUNK_BYTES:
                yield _table(some, kind)
                some, size = [], 0
        if some:
            yield _table(some, kind)

    def some_pairs(self, num: int) -> list[PreferencePair]:
        """The first kept pairs by id that have nothing private in them."""
        query = (
            "SELECT body, looked_at FROM rows WHERE code IS NULL AND kind = 'pair'"
            " AND (excerpt IS NULL OR excerpt <> ?) ORDER BY id"
        )
        found = (
            body
            for body, looked_at in self._db.execute(query, (excerpt.NOT_SHOWN,))
            if looked_at or not is_private(json.loads(body), self._region)
        )
        return [PreferencePair.model_validate_json(body) for body in islice(found, num)]

    def _refused(self, found: tuple[str, str, str, str, str | None, Kind, str, int]) -> Refused:
        dataset, row, code, detail, glimpse, kind, body, looked_at = found
        if glimpse is None:
            hidden = not looked_at and is_private(json.loads(body), self._region)
            glimpse = excerpt.NOT_SHOWN if hidden else excerpt.of_item(_item(kind, body))
        return Refused(dataset, excerpt.plain(row), code, excerpt.plain(detail), glimpse)

    def heldout_prompts(self) -> Iterator[Prompt]:
        """Every held-out prompt once: as its own row says, else as a pair or a rating asks it."""
        query = (
            "SELECT kind, body FROM (SELECT kind, body, prompt_id, row_number() OVER"
            " (PARTITION BY prompt_id ORDER BY kind <> 'prompt', kind, id) AS nth FROM rows"
            " WHERE code IS NULL AND side = 'heldout') WHERE nth = 1 ORDER BY prompt_id"
        )
        for kind, body in self._db.execute(query):
            item = _item(kind, body)
            if isinstance(item, Prompt):
                yield item
            else:
                yield Prompt(
                    prompt=item.prompt, source=item.source, split="heldout", slice=item.slice
                )

    def quarantined(self) -> Iterator[Refused]:
        """Every row that is not kept, in the order they came."""
        query = (
            f"SELECT {_REFUSED} FROM rows"  # noqa: S608 a constant
            " WHERE code IS NOT NULL ORDER BY seq"
        )
        yield from map(self._refused, self._db.execute(query))

    def examples(self, each: int) -> Iterator[Refused]:
        """The first rows of every reason."""
        query = (
            f"SELECT {_REFUSED} FROM (SELECT *,"  # noqa: S608 a constant
            " row_number() OVER (PARTITION BY code ORDER BY seq) AS nth FROM rows"
            " WHERE code IS NOT NULL) WHERE nth <= ? ORDER BY seq"
        )
        yield from map(self._refused, self._db.execute(query, (each,)))

    def first_of(self, code: str) -> str:
        """The first row that got `code`."""
        query = "SELECT row FROM rows WHERE code = ? ORDER BY seq LIMIT 1"
        return excerpt.plain(str(self._db.execute(query, (code,)).fetchone()[0]))

    def by_source(self, *kinds: Kind) -> dict[str, dict[str, int]]:
        """Dataset to reason code to rows, `kept` for the rows that are; of some kinds, or all."""
        told: dict[str, dict[str, int]] = {}
        query = (
            "SELECT dataset, coalesce(code, 'kept'), count(*) FROM rows"
            " WHERE ? IS NULL OR instr(?, kind) GROUP BY 1, 2 ORDER BY 1, 2"
        )
        some = " ".join(kinds) or None
        for dataset, code, count in self._db.execute(query, (some, some)):
            told.setdefault(dataset, {})[code] = count
        return told

    def by_slice(self) -> dict[str, dict[str, int]]:
        """Slice to kept rows as `train_pairs`, `heldout_prompts` and so on."""
        told: dict[str, dict[str, int]] = {}
        query = (
            "SELECT slice, side || '_' || kind || 's', count(*) FROM rows WHERE code IS NULL"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        )
        for name, what, count in self._db.execute(query):
            shown = excerpt.NOT_SHOWN if is_private(name, self._region) else name
            some = told.setdefault(shown, {})
            some[what] = some.get(what, 0) + count
        return told

    def lengths(self, origin: Origin | None = None) -> LengthBias | None:
        """How much longer chosen is than rejected, over the training pairs."""
        unequal, longer, log_ratio = self._db.execute(
            "SELECT count(*), coalesce(sum(chosen_chars > rejected_chars), 0),"
            " avg(ln(1.0 * chosen_chars / rejected_chars)) FROM rows WHERE code IS NULL"
            " AND kind = 'pair' AND label = 'preferred' AND side = 'train'"
            " AND chosen_chars <> rejected_chars AND (? IS NULL OR origin = ?)",
            (origin, origin),
        ).fetchone()
        return length_bias(longer, unequal, log_ratio) if unequal else None

    def findings(self) -> dict[str, int]:
        """Finding, and finding by its kind (`personal: mail`), to the rows that have it."""
        told = Counter[str]()
        query = "SELECT findings, count(*) FROM rows WHERE findings IS NOT NULL GROUP BY findings"
        for found, count in self._db.execute(query):
            kinds = json.loads(found)
            told.update(dict.fromkeys({*kinds, *(kind.partition(":")[0] for kind in kinds)}, count))
        return dict(sorted(told.items()))

    def languages(self) -> dict[str, int]:
        """Language to kept rows, the commonest first; `unknown` where the text does not tell."""
        query = (
            "SELECT coalesce(language, 'unknown'), count(*) FROM rows"
            " WHERE code IS NULL AND looked_at GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        return dict(self._db.execute(query).fetchall())

    def labels(self) -> dict[str, int]:
        """Label to pairs and ratings that nothing else is wrong with."""
        query = (
            "SELECT label, count(*) FROM rows WHERE label IS NOT NULL"
            " AND (code IS NULL OR code = 'not_preferred') GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        return dict(self._db.execute(query).fetchall())

    def votes(self) -> Iterator[dict[str, str]]:
        """For each pair that several people saw, who said what; equal rows count once."""
        query = (
            "SELECT votes FROM rows WHERE votes IS NOT NULL"
            " AND (code IS NULL OR code <> 'duplicate') ORDER BY seq"
        )
        for (votes,) in self._db.execute(query):
            yield {self._annotator(name): vote for name, vote in json.loads(votes).items()}

    @lru_cache(maxsize=4096)  # noqa: B019 a ledger lives as long as its step
    def _annotator(self, name: str) -> str:
        """Their name, or what stands for it where that is a mail address."""
        if not is_private(name, self._region):
            return name
        return f"annotator {hashlib.sha256(name.encode()).hexdigest()[:8]}"

    def near(self) -> dict[str, Any]:
        """Clusters of prompts that are nearly the same or begin alike."""
        ours = "SELECT count(*) FROM prompts WHERE seq IS NOT NULL"
        (num_all,) = self._db.execute(ours).fetchone()
        num_clusters, num_prompts, largest, heldout = self._db.execute(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(max(size), 0),"
            " coalesce(max(size * (side = 'heldout')), 0) FROM (SELECT count(*) AS size,"
            " min(side) AS side FROM prompts WHERE cluster IS NOT NULL AND seq IS NOT NULL"
            " GROUP BY cluster HAVING count(*) > 1)"
        ).fetchone()
        query = (
            "SELECT r.row, count(*), min(r.seq) FROM prompts p JOIN rows r ON r.seq = p.seq"
            " WHERE p.cluster IS NOT NULL GROUP BY p.cluster ORDER BY 2 DESC, 3 LIMIT 5"
        )
        found = self._db.execute(query)
        return {
            "num_clusters": num_clusters,
            "num_prompts": num_prompts,
            "of_prompts": num_all,
            "largest": largest,
            "largest_heldout": heldout,
            "such_as": {excerpt.plain(row): size for row, size, _ in found},
        }

    def token_lengths(self) -> dict[str, dict[str, float]] | None:
        """Of kept pairs, in tokens: the middle, the 95th and the 99th of 100, the longest."""
        told = {}
        for name in TOKENS:
            where = f"FROM rows WHERE code IS NULL AND kind = 'pair' AND {name} IS NOT NULL"
            (num,) = self._db.execute(f"SELECT count(*) {where}").fetchone()
            if not num:
                return None
            query = f"SELECT {name} {where} ORDER BY {name} LIMIT 1 OFFSET ?"
            told[name] = {
                key: self._db.execute(query, (int(share * (num - 1)),)).fetchone()[0]
                for key, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
            }
        return told

    def length_histogram(self, bins: int = 40) -> dict[str, list[float]] | None:
        """Characters of kept pairs' answers in bins of equal ratio; None without any."""
        query = (
            "SELECT max(max(chosen_chars), max(rejected_chars)) FROM rows"
            " WHERE code IS NULL AND kind = 'pair'"
        )
        (longest,) = self._db.execute(query).fetchone()
        if not longest:
            return None
        edges = np.geomspace(1, longest + 1, bins + 1)
        counts = np.zeros((2, bins))
        found = self._db.execute(
            "SELECT chosen_chars, rejected_chars FROM rows WHERE code IS NULL AND kind = 'pair'"
        )
        while some := found.fetchmany(50_000):
            for at, lengths in enumerate(np.array(some).T):
                counts[at] += np.histogram(lengths, edges)[0]
        chosen, rejected = counts.tolist()
        return {"edges": edges.tolist(), "chosen": chosen, "rejected": rejected}

    def digest(self, side: Split | None = None) -> str:
        """sha256 over the ids and sides of kept pairs and ratings, whatever order they came in."""
        digest = hashlib.sha256()
        query = (
            "SELECT id, side FROM rows WHERE code IS NULL AND kind <> 'prompt'"
            " AND (? IS NULL OR side = ?) ORDER BY id"
        )
        for some_id, where in self._db.execute(query, (side, side)):
            digest.update(f"{some_id} {where}\n".encode())
        return digest.hexdigest()


def _sides(own: NDArray[np.bool_], whole: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], ...]:
    """(held out, dropped where it is held out, dropped where it is trained on) of each prompt.

    `own` [num, 4] is what is known of it, `whole` of its cluster: drawn, near an old pair, held out
    before, learnt before.
    """
    _, _, kept_out, learnt = own.T
    drawn, old, near_kept_out, near_learnt = whole.T
    heldout = kept_out | (~learnt & (near_kept_out | (drawn & ~near_learnt)))
    torn = near_kept_out & near_learnt & ~kept_out & ~learnt
    return heldout, old | torn, near_kept_out & ~learnt


def _table(rows: list[tuple[Any, ...]], kind: Kind) -> "pa.Table":
    import pyarrow as pa

    table = json_table((row[0] for row in rows), _MODELS[kind])
    sides = pa.array([row[1] for row in rows], pa.string())
    table = table.set_column(table.schema.get_field_index("split"), "split", sides)
    if kind == "pair":
        measured = [dict(zip(_QUALITY, row[2:], strict=True)) for row in rows]
        for each in measured:
            each["findings"] = json.loads(each["findings"] or "[]")
        at = table.schema.get_field_index("quality")
        table = table.set_column(at, "quality", pa.array(measured, table.schema.field(at).type))
    return table


def quality_columns(quality: Quality) -> dict[str, Any]:
    """What an earlier run of validate measured, as columns."""
    told = quality.model_dump()
    hidden = HIDDEN & {kind.partition(":")[0] for kind in told["findings"]}
    return told | {
        "findings": json.dumps(told["findings"]) if told["findings"] else None,
        "excerpt": excerpt.NOT_SHOWN if hidden else None,
        "looked_at": 1,
    }


def _item(kind: Kind, body: str) -> Item:
    return _MODELS[kind].model_validate_json(body)
