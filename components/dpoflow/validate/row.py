"""One row by itself, as many processes at once can look at it.

Reads   raw rows of one file, the policy's tokenizer, what evaluation sets hold
Gives   `Examiner`: for each row the columns of the ledger, whether it is kept or not;
        `row_columns`, `refused`: the same for rows that were looked at before; `tokenizer_of`
Not     what only the whole set shows: see ledger.py

A row that cannot be used gets the first reason that holds: its shape, blank or overlong texts,
contamination, then the findings that `data.quarantine` names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import TOKENS, Item, Prompt, Rating, Source, with_system
from dpoflow.contracts.spec import FormatName, ValidateConfig
from dpoflow.sources.checks import check
from dpoflow.sources.formats import registry
from dpoflow.sources.json_rows import Raw
from dpoflow.sources.pinned import Pinned
from dpoflow.sources.reasons import Code, Quarantine
from dpoflow.texts.contamination import Evaluations, Overlap, answers_of, said_in
from dpoflow.validate import agreement, excerpt
from dpoflow.validate.findings import HIDDEN, Findings, kinds_of
from dpoflow.validate.private import is_private
from dpoflow.validate.split import asked, normalised, rank, root_of, side_of

Columns = dict[str, Any]
"""A row of the ledger, by the names of its columns; an absent one is null."""

_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Batch:
    """Some rows of one file."""

    pinned: Pinned
    form: FormatName
    rows: Sequence[tuple[str, Raw]]


@dataclass
class _Item:
    """A row that has the shape of a pair or a prompt."""

    value: Item
    came: Item
    """Without what the spec says for all rows of the source, which nobody wants found in each."""
    where: Source
    columns: Columns


class Examiner:
    """Looks at batches; holds nothing of them."""

    def __init__(
        self, config: ValidateConfig, tokenizer: Path | None, evaluations: Evaluations
    ) -> None:
        self._config = config
        self._findings = Findings(config)
        self._overlap = Overlap(evaluations)
        self._tokenizer = Tokenizer.from_file(str(tokenizer)) if tokenizer else None

    def __call__(self, batch: Batch) -> list[Columns]:
        """Columns for each row of the batch, in their order."""
        taken = [self._take(row_id, row, batch) for row_id, row in batch.rows]
        items = [each for each in taken if isinstance(each, _Item)]
        self._count_tokens(items)
        self._find_overlaps(items)
        for item in items:
            self._judge(item)
        return [each.columns if isinstance(each, _Item) else each for each in taken]

    def _take(self, row_id: str, row: Raw, batch: Batch) -> "_Item | Columns":
        pinned = batch.pinned
        where = Source(dataset=pinned.source, row=row_id, licence=pinned.licence)
        try:
            came = registry.convert(row, registry.FORMATS[batch.form], where)
            item = with_system(came, pinned.system)
            check(item, max_chars=self._config.max_chars)
        except Quarantine as refusal:
            detail = self._shown(refusal.detail, refusal.detail)
            return refused(where, refusal.code, detail, self._glimpse(row))
        origin = "replayed" if pinned.role == "replayed" else "human"
        columns = row_columns(item, where, seed=self._config.seed, origin=origin)
        columns["plain"] = asked(item.prompt)
        columns["root"] = root = root_of(item.prompt)
        knobs = self._config
        # The policy may have learnt from an old pair: it can test nothing any more.
        columns["side"] = (
            "train"
            if origin == "replayed"
            else side_of(root, seed=knobs.seed, heldout_fraction=knobs.heldout_fraction)
        )
        return _Item(item, came, where, columns)

    def _glimpse(self, row: Raw) -> str:
        if isinstance(row, Quarantine):
            return ""
        return self._shown(row, excerpt.of_row(row))

    def _shown(self, value: object, told: str) -> str:
        return excerpt.NOT_SHOWN if is_private(value, self._config.phone_region) else told

    def _count_tokens(self, items: Sequence[_Item]) -> None:
        if self._tokenizer is None or not items:
            return
        texts = [_texts(item.value) for item in items]
        encoded = self._tokenizer.encode_batch_fast(
            [text for each in texts for text in each], add_special_tokens=False
        )
        lengths = iter([len(each) for each in encoded])
        for item, each in zip(items, texts, strict=True):
            item.columns |= {name: next(lengths) for name, _ in zip(TOKENS, each, strict=False)}

    def _find_overlaps(self, items: Sequence[_Item]) -> None:
        for item, quoted in zip(
            items, self._overlap.of([said_in(item.value) for item in items]), strict=True
        ):
            if quoted is not None:
                _refuse(item, "contaminated", quoted)

    def _judge(self, item: _Item) -> None:
        found, language = self._findings.of(item.came)
        kinds = sorted({kind for name, told in found.items() for kind in kinds_of(name, told)})
        item.columns |= {
            "language": language,
            "findings": json.dumps(kinds) if kinds else None,
            "looked_at": 1,
        }
        if HIDDEN & found.keys():
            item.columns["excerpt"] = excerpt.NOT_SHOWN
            if "code" in item.columns:  # what the row quotes may be what is private in it
                item.columns["detail"] = excerpt.NOT_SHOWN
        for name, most in zip(TOKENS, self._most(), strict=True):
            num = item.columns.get(name)
            if num is not None and most is not None and num > most:
                told = name.removesuffix("_tokens")
                _refuse(item, "too_many_tokens", f"{told} has {num} tokens, at most {most}")
        for name in self._config.quarantine:
            if name in found:
                _refuse(item, name, found[name])

    def _most(self) -> tuple[int | None, ...]:
        config = self._config
        return config.max_prompt_tokens, config.max_answer_tokens, config.max_answer_tokens


def row_columns(item: Item, where: Source, *, seed: int, origin: str) -> Columns:
    """What the ledger keeps of a sound row, whichever step it comes from."""
    prompt_id = item.prompt_id
    columns: Columns = {
        "dataset": where.dataset,
        "row": where.row,
        "origin": origin,
        "prompt_id": prompt_id,
        "asked": normalised(item.prompt),
        "slice": item.slice,
        "body": item.model_dump_json(),
    }
    if isinstance(item, Prompt):
        return columns | {"kind": "prompt", "id": prompt_id, "bare": int(item.reference is None)}
    if isinstance(item, Rating):
        return columns | {
            "kind": "rating",
            "id": item.rating_id,
            "clash": sha256_json([prompt_id, item.answer.content]),
            "rank": rank(item.rating_id, seed=seed),
            "label": "desirable" if item.desirable else "undesirable",
            "decided": 1,
            "bare": 0,
        }
    chosen, rejected = item.chosen.content, item.rejected.content
    votes = agreement.said(item)
    return columns | {
        "kind": "pair",
        "id": item.pair_id,
        "clash": sha256_json([prompt_id, sorted([chosen, rejected])]),
        "rank": rank(item.pair_id, seed=seed),
        "label": item.label,
        "decided": int(item.label == "preferred"),
        "bare": 0,
        "votes": json.dumps(votes) if votes else None,
        "chosen_chars": len(chosen),
        "rejected_chars": len(rejected),
    }


def refused(
    where: Source, code: Code, detail: str, glimpse: str | None, kind: str | None = None
) -> Columns:
    """The columns of a row that never became a pair or a prompt."""
    return {
        "dataset": where.dataset,
        "row": where.row,
        "kind": kind,
        "code": code,
        "detail": excerpt.plain(detail),
        "excerpt": glimpse,
    }


def _refuse(item: _Item, code: Code, detail: str) -> None:
    if "code" not in item.columns:
        item.columns |= {"code": code, "detail": excerpt.plain(detail)}


def _texts(item: Item) -> list[str]:
    """What `TOKENS` counts, in its order; a rating's answer stands where its thumb says."""
    prompt, answers = "\n".join(turn.content for turn in item.prompt), answers_of(item)
    return [prompt, *([""] if isinstance(item, Rating) and not item.desirable else []), *answers]


def tokenizer_of(model: Path | None, config: ValidateConfig) -> Path | None:
    """The file of the model's tokenizer, which does without transformers' seconds and memory."""
    path = model / _TOKENIZER if model is not None else None
    if path is not None and path.is_file():
        try:
            Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 tokenizers raises nothing narrower
            raise ConfigError(
                f"the model's {_TOKENIZER} cannot be read ({error}); fetch the model again"
            ) from None
        return path
    if config.max_prompt_tokens or config.max_answer_tokens:
        raise ConfigError(
            f"data.max_prompt_tokens and data.max_answer_tokens need the model's {_TOKENIZER}, and "
            "it has none; leave them out, or save the model with a fast tokenizer"
        )
    return None
