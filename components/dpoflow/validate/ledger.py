"""Every row of a run of validate, on disk: what came in, and what became of it.

Reads   canonical rows, and refusals of rows that never became one
Gives   `Ledger`: settles what only the whole set shows, then hands rows out in order of their id
Not     adapters, checks of one row, expectations

A scratch SQLite file in the step's work folder: memory does not grow with rows. A row is kept while
its `code` is null; the first code it gets stays.
"""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.pairs import PreferencePair, Prompt, Quality, Source, Split
from dpoflow.contracts.results import Counts
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.sources.reasons import Code
from dpoflow.validate import excerpt
from dpoflow.validate.split import normalised, rank, side_of

Kind = Literal["pair", "prompt"]
Origin = Literal["human", "synthetic", "replayed"]

_TABLE = """
CREATE TABLE rows (
    seq INTEGER PRIMARY KEY,
    dataset TEXT, row TEXT, origin TEXT, kind TEXT, id TEXT, prompt_id TEXT,
    asked TEXT,    -- the prompt without case and blanks
    clash TEXT,    -- prompt and both answers, whichever was chosen
    rank TEXT, label TEXT, side TEXT, slice TEXT,
    bare INTEGER,  -- 1 for a prompt without an answer
    chosen_chars INTEGER, rejected_chars INTEGER,
    body TEXT, code TEXT, detail TEXT, excerpt TEXT
)
"""
_INSERT = """
INSERT INTO rows VALUES (
    NULL,
    :dataset, :row, :origin, :kind, :id, :prompt_id, :asked, :clash, :rank, :label, :side, :slice,
    :bare, :chosen_chars, :rejected_chars, :body, :code, :detail, :excerpt
)
"""
_NOTHING = dict.fromkeys(re.findall(r":(\w+)", _INSERT))


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

    def __init__(self, path: Path, config: ValidateConfig) -> None:
        path.unlink(missing_ok=True)  # what a killed attempt left
        self._path, self._config = path, config
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")  # a killed attempt starts over
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(_TABLE)
        self._db.execute("BEGIN")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._path.unlink(missing_ok=True)  # what it held is in the outputs by now

    def refuse(
        self, where: Source, code: Code, detail: str, glimpse: str, *, kind: Kind | None = None
    ) -> None:
        """A row that never became a pair or a prompt."""
        self._insert(
            dataset=where.dataset,
            row=where.row,
            code=code,
            detail=excerpt.plain(detail),
            excerpt=glimpse,
            kind=kind,
        )

    def add(
        self,
        item: PreferencePair | Prompt,
        where: Source,
        *,
        origin: Origin = "human",
        split: Split | None = None,
    ) -> None:
        """A sound row. Its side is drawn from its prompt, unless an earlier run already drew it."""
        knobs, prompt_id = self._config, item.prompt_id
        side = split or side_of(prompt_id, seed=knobs.seed, heldout_fraction=knobs.heldout_fraction)
        changes: dict[str, Any] = {"split": side}
        if isinstance(item, PreferencePair):
            own = _pair_columns(item, prompt_id, knobs.seed)
            changes["quality"] = Quality(
                chosen_chars=own["chosen_chars"], rejected_chars=own["rejected_chars"]
            )
        else:
            own = _prompt_columns(item)
        self._insert(
            dataset=where.dataset,
            row=where.row,
            origin=origin,
            prompt_id=prompt_id,
            asked=normalised(item.prompt),
            side=side,
            slice=item.slice,
            body=item.model_copy(update=changes).model_dump_json(),
            **own,
        )

    def _insert(self, **values: str | int | None) -> None:
        self._db.execute(_INSERT, {**_NOTHING, **values})

    def index(self) -> None:
        """Once, after the last row and before any question about the whole set."""
        self._db.execute("CREATE INDEX by_id ON rows (kind, id)")
        self._db.execute("CREATE INDEX by_clash ON rows (clash)")
        self._db.execute("CREATE INDEX by_asked ON rows (asked, side)")

    def drop_not_preferred(self) -> None:
        """Pairs that no judge or person decided: not for training."""
        self._db.execute(
            "UPDATE rows SET code = 'not_preferred', detail = label"
            " WHERE code IS NULL AND kind = 'pair' AND label <> 'preferred'"
        )

    def drop_duplicates(self) -> None:
        """The first of equal rows stays; of equal prompts, the first that has a human's answer."""
        self._db.execute(
            "UPDATE rows SET code = 'duplicate', detail = (SELECT 'of ' || o.row FROM rows o"
            "  WHERE o.kind = rows.kind AND o.id = rows.id AND o.code IS NULL"
            "  ORDER BY o.bare, o.seq LIMIT 1)"
            " WHERE seq IN (SELECT seq FROM (SELECT seq, row_number() OVER"
            "  (PARTITION BY kind, id ORDER BY bare, seq) AS nth FROM rows WHERE code IS NULL)"
            "  WHERE nth > 1)"
        )

    def drop_conflicts(self) -> None:
        """A over B here and B over A there: neither can be right, so neither is used."""
        self._db.execute(
            "UPDATE rows SET code = 'conflicting', detail = (SELECT 'with ' || o.row FROM rows o"
            "  WHERE o.clash = rows.clash AND o.id <> rows.id ORDER BY o.seq LIMIT 1)"
            " WHERE code IS NULL AND label = 'preferred' AND clash IN"
            "  (SELECT clash FROM rows WHERE code IS NULL AND label = 'preferred'"
            "  GROUP BY clash HAVING count(DISTINCT id) > 1)"
        )

    def drop_leaks(self) -> None:
        """Training pairs whose prompt is held out, also in another case or with other blanks."""
        self._db.execute(
            "UPDATE rows SET code = 'leakage', detail = (SELECT 'held out: ' || o.row FROM rows o"
            "  WHERE o.asked = rows.asked AND o.side = 'heldout' ORDER BY o.seq LIMIT 1)"
            " WHERE code IS NULL AND kind = 'pair' AND side = 'train' AND asked IN"
            "  (SELECT asked FROM rows WHERE side = 'heldout' AND code IS NULL)"
        )

    def select(self, max_pairs: int) -> None:
        """Keep the pairs with the lowest seeded hashes: data that is added displaces few."""
        self._db.execute(
            "UPDATE rows SET code = 'not_selected'"
            " WHERE code IS NULL AND label = 'preferred' AND origin <> 'replayed'"
            " AND seq NOT IN (SELECT seq FROM rows"
            "  WHERE code IS NULL AND label = 'preferred' AND origin <> 'replayed'"
            "  ORDER BY rank LIMIT ?)",
            (max_pairs,),
        )

    def select_replayed(self, per_new: float) -> None:
        """Of old pairs, those with the lowest seeded hashes: so many for each new one."""
        (new,) = self._db.execute(
            "SELECT count(*) FROM rows"
            " WHERE code IS NULL AND label = 'preferred' AND origin <> 'replayed'"
        ).fetchone()
        self._db.execute(
            "UPDATE rows SET code = 'not_replayed'"
            " WHERE code IS NULL AND kind = 'pair' AND origin = 'replayed' AND seq NOT IN"
            "  (SELECT seq FROM rows WHERE code IS NULL AND label = 'preferred'"
            "  AND origin = 'replayed' ORDER BY rank LIMIT ?)",
            (int(per_new * new),),
        )

    def counts(self, kind: Kind | None = None) -> Counts:
        """What came in and what became of it; of one kind, or of all rows."""
        by_code = dict(
            self._db.execute(
                "SELECT code, count(*) FROM rows WHERE ? IS NULL OR kind = ?"
                " GROUP BY code ORDER BY count(*) DESC, code",
                (kind, kind),
            ).fetchall()
        )
        num_kept = by_code.pop(None, 0)
        (num_in,) = self._db.execute(
            "SELECT count(*) FROM rows WHERE ? IS NULL OR kind = ?", (kind, kind)
        ).fetchone()
        return Counts(num_in=num_in, num_kept=num_kept, quarantined=by_code)

    def num_kept(self, kind: Kind, side: Split) -> int:
        """Kept rows of one kind on one side."""
        query = "SELECT count(*) FROM rows WHERE code IS NULL AND kind = ? AND side = ?"
        return int(self._db.execute(query, (kind, side)).fetchone()[0])

    def num_prompts(self, side: Split) -> int:
        """Different prompts among the kept rows of one side."""
        query = "SELECT count(DISTINCT prompt_id) FROM rows WHERE code IS NULL AND side = ?"
        return int(self._db.execute(query, (side,)).fetchone()[0])

    def pairs(
        self, side: Split | None = None, *, origin: Origin | None = None
    ) -> Iterator[PreferencePair]:
        """Kept pairs in order of their id."""
        query = (
            "SELECT body FROM rows WHERE code IS NULL AND kind = 'pair'"
            " AND (? IS NULL OR side = ?) AND (? IS NULL OR origin = ?) ORDER BY id"
        )
        for (body,) in self._db.execute(query, (side, side, origin, origin)):
            yield PreferencePair.model_validate_json(body)

    def prompts(self) -> Iterator[Prompt]:
        """Kept prompts in order of their id."""
        query = "SELECT body FROM rows WHERE code IS NULL AND kind = 'prompt' ORDER BY id"
        for (body,) in self._db.execute(query):
            yield Prompt.model_validate_json(body)

    def heldout_prompts(self) -> Iterator[Prompt]:
        """Every held-out prompt once: as the prompt row says, else as a held-out pair asks it."""
        query = (
            "SELECT kind, body FROM (SELECT kind, body, prompt_id, row_number() OVER"
            " (PARTITION BY prompt_id ORDER BY kind DESC, id) AS nth FROM rows"  # prompt, pair
            " WHERE code IS NULL AND side = 'heldout') WHERE nth = 1 ORDER BY prompt_id"
        )
        for kind, body in self._db.execute(query):
            if kind == "prompt":
                yield Prompt.model_validate_json(body)
            else:
                pair = PreferencePair.model_validate_json(body)
                yield Prompt(
                    prompt=pair.prompt, source=pair.source, split="heldout", slice=pair.slice
                )

    def quarantined(self) -> Iterator[Refused]:
        """Every row that is not kept, in the order they came."""
        query = (
            "SELECT dataset, row, code, coalesce(detail, ''), excerpt, kind, body FROM rows"
            " WHERE code IS NOT NULL ORDER BY seq"
        )
        yield from map(_refused, self._db.execute(query))

    def examples(self, each: int) -> Iterator[Refused]:
        """The first rows of every reason."""
        query = (
            "SELECT dataset, row, code, coalesce(detail, ''), excerpt, kind, body FROM (SELECT *,"
            " row_number() OVER (PARTITION BY code ORDER BY seq) AS nth FROM rows"
            " WHERE code IS NOT NULL) WHERE nth <= ? ORDER BY seq"
        )
        yield from map(_refused, self._db.execute(query, (each,)))

    def first_of(self, code: str) -> str:
        """The first row that got `code`."""
        query = "SELECT row FROM rows WHERE code = ? ORDER BY seq LIMIT 1"
        return excerpt.plain(str(self._db.execute(query, (code,)).fetchone()[0]))

    def by_source(self, kind: Kind | None = None) -> dict[str, dict[str, int]]:
        """Dataset to reason code to rows, `kept` for the rows that are; of one kind, or of all."""
        told: dict[str, dict[str, int]] = {}
        query = (
            "SELECT dataset, coalesce(code, 'kept'), count(*) FROM rows WHERE ? IS NULL OR kind = ?"
            " GROUP BY 1, 2 ORDER BY 1, 2"
        )
        for dataset, code, count in self._db.execute(query, (kind, kind)):
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
            told.setdefault(name, {})[what] = count
        return told

    def lengths(self, origin: Origin | None = None) -> dict[str, float] | None:
        """How much longer chosen is than rejected, over the training pairs; None without any."""
        count, longer, ratio = self._db.execute(
            "SELECT count(*), avg(chosen_chars > rejected_chars),"
            " avg(1.0 * chosen_chars / rejected_chars) FROM rows WHERE code IS NULL"
            " AND kind = 'pair' AND label = 'preferred' AND side = 'train'"
            " AND (? IS NULL OR origin = ?)",
            (origin, origin),
        ).fetchone()
        if not count:
            return None
        return {"num_pairs": count, "chosen_longer_share": longer, "mean_length_ratio": ratio}

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
        """sha256 over the ids and sides of the kept pairs, whatever order they came in."""
        digest = hashlib.sha256()
        query = (
            "SELECT id, side FROM rows WHERE code IS NULL AND kind = 'pair'"
            " AND (? IS NULL OR side = ?) ORDER BY id"
        )
        for some_id, where in self._db.execute(query, (side, side)):
            digest.update(f"{some_id} {where}\n".encode())
        return digest.hexdigest()


def _pair_columns(pair: PreferencePair, prompt_id: str, seed: int) -> dict[str, Any]:
    chosen, rejected = pair.chosen.content, pair.rejected.content
    return {
        "kind": "pair",
        "id": pair.pair_id,
        "clash": sha256_json([prompt_id, sorted([chosen, rejected])]),
        "rank": rank(pair.pair_id, seed=seed),
        "label": pair.label,
        "bare": 0,
        "chosen_chars": len(chosen),
        "rejected_chars": len(rejected),
    }


def _refused(found: tuple[str, str, str, str, str | None, Kind, str]) -> Refused:
    dataset, row, code, detail, glimpse, kind, body = found
    shown = _glimpse(kind, body) if glimpse is None else glimpse
    return Refused(dataset, excerpt.plain(row), code, excerpt.plain(detail), shown)


def _glimpse(kind: Kind, body: str) -> str:
    model = PreferencePair if kind == "pair" else Prompt
    return excerpt.of_item(model.model_validate_json(body))


def _prompt_columns(item: Prompt) -> dict[str, Any]:
    return {"kind": "prompt", "id": item.prompt_id, "bare": int(item.reference is None)}
