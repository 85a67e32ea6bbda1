"""Preference pairs and the prompts that wait for one: what flows from sources to training.

Reads   rows that an adapter made
Gives   `PreferencePair`, `Rating`, `Prompt`, their Arrow schemas, and Parquet and JSONL of each
Not     recognising foreign formats (sources/), judging (judge/), splitting (validate/)
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from pydantic import Field, model_validator

from dpoflow.contracts.base import Contract, sha256_json

if TYPE_CHECKING:  # pyarrow loads in 0.3 s and only whoever touches Parquet needs it
    import pyarrow as pa

SCHEMA_VERSION = 1
TOKENS = ("prompt_tokens", "chosen_tokens", "rejected_tokens")
"""Of `Quality`."""

Role = Literal["system", "user", "assistant"]
Label = Literal["preferred", "tie", "inconsistent", "invalid"]
Split = Literal["train", "heldout"]


class Message(Contract):
    """One turn of a conversation."""

    role: Role
    content: str


class Vote(Contract):
    """What one annotator said about the pair, in the order it was shown."""

    annotator: str
    """Who voted: `human`, or a judge's id."""
    order: Literal["chosen_first", "rejected_first", "unordered"] = "unordered"
    verdict: Literal["chosen", "rejected", "tie", "invalid"]
    score: float | None = None
    """The annotator's own margin, in its own unit, if it gave one."""
    rationale: str | None = None


class Source(Contract):
    """The row that a pair or prompt came from."""

    dataset: str
    row: str
    """File and line (or index), such as `test.jsonl:17`."""
    licence: str = "unknown"


class Writer(Contract):
    """What wrote an answer."""

    generator: str
    """Digest of the model's files, or the model's name at its endpoint."""
    sampling: str
    """Canonical JSON of how it was sampled, a system message of its own included."""
    seed: int


class Provenance(Contract):
    """How a synthetic pair came to be; absent for pairs that arrived whole."""

    chosen: Writer | None
    """None where a human wrote it."""
    rejected: Writer
    judge: str
    """Id of the judge, with the digest of its rubric or template; `human` where a human wrote."""
    requests: tuple[str, ...] = ()
    """Keys of the requests that its verdicts came from, in the store of answers."""


class Quality(Contract):
    """Measured facts that checks and slices are made of."""

    chosen_chars: int
    rejected_chars: int
    prompt_tokens: int | None = None
    """Of the policy's tokenizer, without the chat template; None where it was not asked."""
    chosen_tokens: int | None = None
    rejected_tokens: int | None = None
    language: str | None = None
    """Of the chosen answer, ISO 639; None where the text does not tell."""
    findings: tuple[str, ...] = ()
    """What else is in its texts, such as `refusal` or `personal: mail`."""
    cluster: str | None = None
    """Shared by prompts that are nearly the same or begin alike; None for a prompt by itself."""


def _check_turns(prompt: tuple[Message, ...]) -> None:
    turns = [message.role for message in prompt if message.role != "system"]
    if any(message.role == "system" for message in prompt[1:]):
        raise ValueError("a system message may only stand first")
    if not turns or turns[-1] != "user":
        raise ValueError("a prompt must end with a user turn")
    if any(left == right for left, right in pairwise(turns)):
        raise ValueError("user and assistant turns must alternate")


class Prompt(Contract):
    """A question that waits for candidates; `reference` is a human's answer, if there is one."""

    schema_version: int = SCHEMA_VERSION
    prompt_id: str = ""
    """sha256 of the messages; filled in when empty, checked when not."""
    prompt: tuple[Message, ...] = Field(min_length=1)
    reference: str | None = None
    source: Source
    split: Split = "train"
    slice: str = "all"

    @model_validator(mode="after")
    def _identify(self) -> Self:
        _check_turns(self.prompt)
        return _fill(self, "prompt_id", prompt_digest(self.prompt))


class PreferencePair(Contract):
    """One comparison: of two answers to `prompt`, `chosen` was preferred to `rejected`.

    Only pairs labelled `preferred` reach training; the other labels are kept for audit.
    """

    schema_version: int = SCHEMA_VERSION
    pair_id: str = ""
    """sha256 of prompt, chosen and rejected; filled in when empty, checked when not."""
    prompt: tuple[Message, ...] = Field(min_length=1)
    chosen: Message
    rejected: Message
    rejected_ended: bool = True
    """Whether the rejected answer ended by itself. One that was cut at a token limit did not, and
    training must not count an end that was never there."""
    label: Label = "preferred"
    margin: float | None = None
    """By how much `chosen` won, in the judge's unit; None where the source gives no number."""
    votes: tuple[Vote, ...] = ()
    source: Source
    provenance: Provenance | None = None
    quality: Quality | None = None
    split: Split = "train"
    slice: str = "all"

    @model_validator(mode="after")
    def _identify(self) -> Self:
        _check_turns(self.prompt)
        if self.chosen.role != "assistant" or self.rejected.role != "assistant":
            raise ValueError("chosen and rejected must be assistant messages")
        content = {
            "prompt": [message.model_dump() for message in self.prompt],
            "chosen": self.chosen.content,
            "rejected": self.rejected.content,
        }
        return _fill(self, "pair_id", sha256_json(content))

    @property
    def prompt_id(self) -> str:
        """sha256 of the prompt alone: what the split and joins go by."""
        return prompt_digest(self.prompt)


class Rating(Contract):
    """One answer to `prompt`, by itself: a thumb up or a thumb down, compared with nothing."""

    schema_version: int = SCHEMA_VERSION
    rating_id: str = ""
    """sha256 of prompt, answer and thumb; filled in when empty, checked when not."""
    prompt: tuple[Message, ...] = Field(min_length=1)
    answer: Message
    desirable: bool
    """Thumb up."""
    source: Source
    split: Split = "train"
    slice: str = "all"

    @model_validator(mode="after")
    def _identify(self) -> Self:
        _check_turns(self.prompt)
        if self.answer.role != "assistant":
            raise ValueError("the answer must be an assistant message")
        content = {
            "prompt": [message.model_dump() for message in self.prompt],
            "answer": self.answer.content,
            "desirable": self.desirable,
        }
        return _fill(self, "rating_id", sha256_json(content))

    @property
    def prompt_id(self) -> str:
        """As of a pair."""
        return prompt_digest(self.prompt)


Item = PreferencePair | Rating | Prompt
"""What an adapter makes of a row."""

Row = TypeVar("Row", PreferencePair, Rating, Prompt)
AnyRow = TypeVar("AnyRow", bound=Contract)


def with_system(row: Item, system: str | None) -> Item:
    """`row` with a system message first, if it brings none of its own."""
    if system is None or row.prompt[0].role == "system":
        return row
    values: dict[str, Any] = row.model_dump(exclude={"pair_id", "rating_id", "prompt_id"})
    values["prompt"] = [{"role": "system", "content": system}, *values["prompt"]]
    return type(row).model_validate(values)


def prompt_digest(prompt: tuple[Message, ...]) -> str:
    """sha256 of a prompt's messages."""
    return sha256_json([message.model_dump() for message in prompt])


def _fill(row: AnyRow, field: str, digest: str) -> AnyRow:
    given = getattr(row, field)
    if given and given != digest:
        raise ValueError(f"{field} {given[:12]}… does not match the content ({digest[:12]}…)")
    object.__setattr__(row, field, digest)  # frozen, and still under construction here
    return row


def arrow_schema(kind: type[Item]) -> "pa.Schema":
    """The Arrow schema of `kind`, with the contract's version in its metadata."""
    import pyarrow as pa

    text, real, whole = pa.string(), pa.float64(), pa.int64()
    message = pa.struct([("role", text), ("content", text)])
    source = pa.struct([("dataset", text), ("row", text), ("licence", text)])
    tail = [("source", source), ("split", text), ("slice", text)]
    if kind is Prompt:
        fields = [
            ("schema_version", whole),
            ("prompt_id", text),
            ("prompt", pa.list_(message)),
            ("reference", text),
            *tail,
        ]
    elif kind is Rating:
        fields = [
            ("schema_version", whole),
            ("rating_id", text),
            ("prompt", pa.list_(message)),
            ("answer", message),
            ("desirable", pa.bool_()),
            *tail,
        ]
    else:
        vote = [("annotator", text), ("order", text), ("verdict", text), ("score", real)]
        writer = pa.struct([("generator", text), ("sampling", text), ("seed", whole)])
        provenance = [("chosen", writer), ("rejected", writer), ("judge", text)]
        provenance += [("requests", pa.list_(text))]
        counts = ("chosen_chars", "rejected_chars", *TOKENS)
        quality = [(name, whole) for name in counts]
        quality += [("language", text), ("findings", pa.list_(text)), ("cluster", text)]
        fields = [
            ("schema_version", whole),
            ("pair_id", text),
            ("prompt", pa.list_(message)),
            ("chosen", message),
            ("rejected", message),
            ("rejected_ended", pa.bool_()),
            ("label", text),
            ("margin", real),
            ("votes", pa.list_(pa.struct([*vote, ("rationale", text)]))),
            ("provenance", pa.struct(provenance)),
            ("quality", pa.struct(quality)),
            *tail,
        ]
    return pa.schema(fields, metadata={"dpoflow.schema_version": str(SCHEMA_VERSION)})


def write_parquet(rows: Iterable[Row], kind: type[Row], path: Path, *, batch: int = 4096) -> int:
    """Write `rows` as Parquet, `batch` at a time; returns how many there were."""
    import pyarrow as pa

    schema, each = arrow_schema(kind), iter(rows)

    def tables() -> Iterator[pa.Table]:
        while some := [row.model_dump(mode="python") for row in islice(each, batch)]:
            yield pa.Table.from_pylist(some, schema=schema)

    return write_tables(tables(), kind, path)


def write_tables(tables: "Iterable[pa.Table]", kind: type[Row], path: Path) -> int:
    """Write tables of `arrow_schema(kind)` as one Parquet file; returns how many rows it has."""
    import pyarrow.parquet as pq

    num_rows = 0
    with pq.ParquetWriter(path, arrow_schema(kind), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            num_rows += table.num_rows
    return num_rows


def json_table(rows: Iterable[str], kind: type[Item]) -> "pa.Table":
    """Rows as `model_dump_json` writes them, as a table of `arrow_schema(kind)`."""
    import pyarrow as pa
    import pyarrow.json as pj

    lines = "\n".join(rows).encode()
    return pj.read_json(
        pa.BufferReader(lines),
        read_options=pj.ReadOptions(block_size=len(lines) + 1),  # no row is cut by a block's end
        parse_options=pj.ParseOptions(
            explicit_schema=arrow_schema(kind), unexpected_field_behavior="error"
        ),
    )


def read_parquet(path: Path, kind: type[Row], *, batch: int = 4096) -> Iterator[Row]:
    """Rows of a Parquet file that `write_parquet` wrote, re-validated."""
    import pyarrow.parquet as pq

    for chunk in pq.ParquetFile(path).iter_batches(batch_size=batch):
        for row in chunk.to_pylist():
            yield kind.model_validate(row)


def write_jsonl(rows: Iterable[Contract], path: Path) -> int:
    """Write `rows` as JSON lines; returns how many there were."""
    num_rows = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(row.model_dump_json() + "\n")
            num_rows += 1
    return num_rows


def read_jsonl(path: Path, kind: type[AnyRow]) -> Iterator[AnyRow]:
    """Rows of a JSONL file that `write_jsonl` wrote, re-validated."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield kind.model_validate(cast("dict[str, Any]", json.loads(line)))
