"""Files: what a URI names, rows one by one, and damage that is named by file, line and way out."""

import contextlib
import errno
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.sources.files import data_files, read_rows
from dpoflow.sources.reasons import Quarantine

ROWS = [{"a": 1}, {"a": "zwei"}, {"b": [{"c": None}]}]


def rows_of(path: Path, max_line_mb: float = 16) -> list[Any]:
    return [row for _, row in read_rows(path, path.name, max_line_mb=max_line_mb)]


def ids_of(path: Path) -> list[str]:
    return [row_id for row_id, _ in read_rows(path, path.name, max_line_mb=16)]


def refusal(path: Path, max_line_mb: float = 16) -> str:
    with pytest.raises(DataRejected) as caught:
        rows_of(path, max_line_mb)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def as_lines(rows: list[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def as_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"a": n, "b": [{"c": str(n)}]} for n in range(3)]), path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_bytes(as_lines(ROWS)),
    "x.json": lambda path: path.write_bytes(json.dumps(ROWS, indent=2).encode()),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_lines(ROWS))),
    "x.json.gz": lambda path: path.write_bytes(gzip.compress(json.dumps(ROWS).encode())),
    "x.jsonl.zst": lambda path: path.write_bytes(zstd(as_lines(ROWS))),
    "x.json.zst": lambda path: path.write_bytes(zstd(json.dumps(ROWS).encode())),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_json_layout_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)

    assert rows_of(tmp_path / name) == ROWS
    assert ids_of(tmp_path / name) == [f"{name}:1", f"{name}:2", f"{name}:3"]


def test_parquet_gives_rows_with_nested_values(tmp_path: Path) -> None:
    as_parquet(tmp_path / "x.parquet")

    assert rows_of(tmp_path / "x.parquet")[2] == {"a": 2, "b": [{"c": "2"}]}
    assert ids_of(tmp_path / "x.parquet") == ["x.parquet:1", "x.parquet:2", "x.parquet:3"]


def test_row_ids_count_blank_lines_as_an_editor_does(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b'\n{"a":1}\r\n  \n{"a":2}')

    assert ids_of(tmp_path / "x.jsonl") == ["x.jsonl:2", "x.jsonl:4"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_a_byte_order_mark_is_no_part_of_the_data(name: str, tmp_path: Path) -> None:
    content = {"x.jsonl": b'{"a": 1}\n', "x.json": b'[{"a": 1}]'}[name]
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content)

    assert rows_of(tmp_path / name) == [{"a": 1}]


# ---------------------------------------------------------------- what a URI names


def test_a_folder_is_read_whole_and_in_order_of_names(tmp_path: Path) -> None:
    strangers = (".argilla/settings.json", ".hidden.jsonl", "README.md")
    for name in ("b.jsonl", "a/z.json", "c.PARQUET", *strangers):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")

    found = data_files(str(tmp_path))

    assert [file.name for file in found.files] == ["a/z.json", "b.jsonl", "c.PARQUET"]
    assert found.ignored == list(strangers)


def test_a_file_uri_may_carry_escapes(tmp_path: Path) -> None:
    (tmp_path / "my data.jsonl").write_text("{}")

    found = data_files(f"file://{tmp_path}/my%20data.jsonl")

    assert [file.path for file in found.files] == [tmp_path / "my data.jsonl"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("gs://bucket/key.jsonl", "gs:// is not known"),
        ("ftp://host/x.jsonl", "ftp:// is not known"),
        ("file://elsewhere/x.jsonl", "cannot be read"),
        ("nowhere/x.jsonl", "does not exist"),
        ("nul\0byte.jsonl", "does not exist"),
        ("x" * 5000, "cannot be a path"),
    ],
)
def test_a_uri_that_names_nothing_is_the_specs_fault(uri: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources") as caught:
        data_files(uri)

    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def empty_folder(path: Path) -> Path:
    (path / "d").mkdir()
    return path / "d"


def only_strangers(path: Path) -> Path:
    (empty_folder(path) / "notes.txt").write_text("x")
    return path / "d"


def empty_file(path: Path) -> Path:
    (path / "e.jsonl").touch()
    return path / "e.jsonl"


def unknown_suffix(path: Path) -> Path:
    (path / "e.xlsx").write_text("a,b")
    return path / "e.xlsx"


def dangling_link(path: Path) -> Path:
    (empty_folder(path) / "x.jsonl").symlink_to(path / "gone")
    return path / "d"


def pipe(path: Path) -> Path:
    os.mkfifo(path / "p.jsonl")
    return path / "p.jsonl"


def escapes_in_a_name(path: Path) -> Path:
    (empty_folder(path) / "\x1b[2Jx.jsonl").write_text("{}")
    return path / "d"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (empty_folder, "is empty"),
        (only_strangers, "none of its 1 files"),
        (empty_file, "e.jsonl is empty (0 bytes)"),
        (unknown_suffix, "e.xlsx has no suffix"),
        (dangling_link, "not a regular file"),
        (pipe, "neither a file nor a folder"),
        (escapes_in_a_name, "cannot be printed"),
    ],
)
def test_what_cannot_be_data_is_the_owners_fault(
    make: Callable[[Path], Path], says: str, tmp_path: Path
) -> None:
    with pytest.raises(DataRejected) as caught:
        data_files(str(make(tmp_path)))

    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / "x.jsonl").write_text("{}")
    monkeypatch.setattr(Path, "open", denied)  # chmod would not stop root, who runs containers

    with pytest.raises(DataRejected, match=r"x.jsonl cannot be read \(Permission denied\)"):
        data_files(str(tmp_path))


# ---------------------------------------------------------------- tables


def test_csv_gives_text_under_its_header_and_says_which_rows_are_ragged(tmp_path: Path) -> None:
    table = '\ufeffprompt,chosen,rejected\r\n1,"a ""b""\nc",=2+3\r\n\r\nlone\r\nx,y,z\r\n'
    for name, content in (("x.csv", table.encode()), ("x.csv.gz", gzip.compress(table.encode()))):
        (tmp_path / name).write_bytes(content)

        one, odd, last = rows_of(tmp_path / name)

        assert one == {"prompt": "1", "chosen": 'a "b"\nc', "rejected": "=2+3"}
        assert isinstance(odd, Quarantine)
        assert odd.code == "ragged"
        assert last == {"prompt": "x", "chosen": "y", "rejected": "z"}


def test_what_datasets_saves_to_disk_is_read_and_its_notes_are_not(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(1500)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved", num_shards=2)

    found = data_files(str(tmp_path / "saved"))

    assert [file.name for file in found.files] == [
        "data-00000-of-00002.arrow",
        "data-00001-of-00002.arrow",
    ]
    assert found.ignored == ["dataset_info.json", "state.json"]
    assert [row for file in found.files for row in rows_of(file.path)] == rows


def test_what_datasets_caches_beside_its_data_is_nobodys_preference(tmp_path: Path) -> None:
    rows = [{"chosen": "a", "rejected": "b"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("cache-0123.arrow", "cache-indices.arrow"):
        (tmp_path / "saved" / name).write_bytes(b"of another step")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["saved"]}')

    found = data_files(str(tmp_path))

    assert [file.name for file in found.files] == ["saved/data-00000-of-00001.arrow"]
    assert "dataset_dict.json" in found.ignored


@pytest.mark.parametrize("batches", [1, 2])
def test_an_arrow_stream_that_stops_between_batches_is_refused(
    batches: int, tmp_path: Path
) -> None:
    path, table = tmp_path / "x.arrow", pa.table({"a": list(range(3000))})
    ends = []
    with path.open("wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
        for batch in table.to_batches(max_chunksize=1000):
            stream.write_batch(batch)
            ends.append(out.tell())
    assert len(rows_of(path)) == 3000
    path.write_bytes(path.read_bytes()[: ends[batches - 1]])

    assert "its end is missing" in refusal(path)


def test_an_arrow_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["p"]), pa.array(["q"])], names=["chosen", "chosen"])
    with pa.ipc.new_stream(tmp_path / "x.arrow", table.schema) as out:
        out.write_table(table)

    assert "two columns of one name" in refusal(tmp_path / "x.arrow")


def test_arrows_own_file_layout_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"a": list(range(1000))})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=300)

    assert rows_of(tmp_path / "x.arrow") == table.to_pylist()


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_bomb_is_refused_before_it_is_unpacked(
    pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    suffix = "zst" if pack is zstd else "gz"
    line = json.dumps({"a": "x" * 1000}).encode() + b"\n"
    (tmp_path / f"x.jsonl.{suffix}").write_bytes(pack(line * 20_000))
    size = (tmp_path / f"x.jsonl.{suffix}").stat().st_size

    tracemalloc.start()
    with pytest.raises(DataRejected, match=r"unpacks to more than data\.max_unpacked_gb \(0\.01\)"):
        for _ in read_rows(
            tmp_path / f"x.jsonl.{suffix}",
            f"x.jsonl.{suffix}",
            max_line_mb=16,
            max_unpacked_gb=0.01,
        ):
            pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert size < 100_000
    assert peak < 8 << 20


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', "x.jsonl, line 2, column"),
        ("x.jsonl", b'{"a": 1}\n{"a": "cut', "x.jsonl, line 2, column 7"),
        ("x.jsonl", b'{"a": 1} {"b": 2}\n', "line 1, column 10"),
        ("x.jsonl", b'{"a": NaN}\n', "NaN is not JSON"),
        ("x.jsonl", b'{"a": -Infinity}\n', "-Infinity is not JSON"),
        ("x.jsonl", b'{"a": 1e999}\n', "larger than a float"),
        ("x.jsonl", b'{"a": ' + b"9" * 5000 + b"}\n", "thousands of digits"),
        ("x.jsonl", b"[" * 100_000 + b"]" * 100_000 + b"\n", "nested too deep"),
        ("x.jsonl", b'{"ok": 1}\n{"a": "\xff\xfe"}\n', "line 2, byte 8 is not UTF-8"),
        ("x.jsonl", '{"a": 1}\n'.encode("utf-16"), "line 1, byte 1 is not UTF-8"),
        ("x.jsonl", b"\n \n", "x.jsonl holds no rows"),
        ("x.json", b"[]", "x.json holds no rows"),
        ("x.json", b'{"a": 1}', "is named .jsonl"),
        ("x.json", b'[{"a": 1},\n {"a": 2}', "line 2, column 10"),
        ("x.json", b'[{"a": 1},\n {"a": ]', "line 2, column 8"),
        ("x.json", b'[{"a": 1}]\n\n[]', "line 3, column 1 is cut off or broken JSON (Extra data)"),
        ("x.json", b'[{"a": 1},]', "line 1, column 11"),
        ("x.json", b'[{"a": 1} {"a": 2}]', "line 1, column 11"),
        ("x.json", b'[{"a": Infinity}]', "Infinity is not JSON"),
        ("x.json", b"[" + b"[" * 100_000, "nested too deep"),
        ("x.json", b'[{"a": 1},\n{"a": "\xff"}]', "line 2, byte 19 of the file is not UTF-8"),
        ("x.json", b"   ", "no JSON array"),
        ("x.jsonl.gz", b"no gzip at all", "damaged gzip"),
        # The bytes name the test, so no time may stand in them: processes compare names.
        ("x.jsonl.gz", gzip.compress(as_lines(ROWS) * 99, mtime=0)[:-12], "damaged gzip"),
        ("x.jsonl.gz", gzip.compress(b"", mtime=0), "holds no rows"),
        ("x.jsonl.zst", b"no zstd at all", "damaged zstd"),
        ("x.jsonl.zst", zstd(as_lines(ROWS) * 99)[:-12], "damaged zstd"),
        ("x.csv", b"a,a\n1,2\n", "two columns called 'a'"),
        ("x.csv", b"a,\n1,2\n", "a column without a name"),
        ("x.csv", b"a;b\n1;2,5\n", "separates its columns by semicolons"),
        ("x.csv", b"a\tb\n1\t2\n", "separates its columns by tabs"),
        ("x.csv", b"a,b\n", "holds no rows"),
        ("x.csv", b'a,b\n1,"2\n', "line 2 is no sound CSV"),
        ("x.csv", b'a,b\n1,"2"3\n', "line 2 is no sound CSV"),
        ("x.csv", b"a,b\n1,\xff\n", "x.csv is not UTF-8 after row"),
        ("x.arrow", b"ARROW1 and nothing else", "no Arrow file"),
        ("x.arrow", b"none at all", "no Arrow file"),
        ("x.parquet", b"PAR1 and nothing else PAR1", "no Parquet file"),
        ("x.parquet", b"", "no Parquet file"),
    ],
)
def test_a_damaged_file_is_refused_whole(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)

    assert says in refusal(tmp_path / name)


def test_a_parquet_file_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    as_parquet(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])

    assert "fetch it again" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.csv", "x.csv.gz"])
def test_an_endless_line_is_refused_without_being_held(name: str, tmp_path: Path) -> None:
    line = b'{"a": "' + b"x" * (24 << 20) + b'"}'
    content = {
        "x.jsonl": b"{}\n" + line,
        "x.json": b"[{},\n" + line,
        "x.jsonl.gz": b"{}\n" + line,
    }.get(name, b"a\n" + line)
    (tmp_path / name).write_bytes(gzip.compress(content, 1) if name.endswith("gz") else content)
    del content, line

    tracemalloc.start()
    said = refusal(tmp_path / name, max_line_mb=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert ("x.json, row 2" if name == "x.json" else f"{name}, line 2") in said
    assert "data.max_line_mb" in said
    assert peak < 8 << 20
    if name not in ("x.json", "x.csv", "x.csv.gz"):
        assert "24 MiB long" in said


@pytest.mark.parametrize("over", [0, 1])
def test_the_longest_line_allowed_is_as_long_as_the_knob_says(over: int, tmp_path: Path) -> None:
    text = "x" * ((1 << 20) - len('{"a": ""}') + over)
    (tmp_path / "x.jsonl").write_text(json.dumps({"a": text}) + "\n")

    if over:
        assert "line 1" in refusal(tmp_path / "x.jsonl", max_line_mb=1)
    else:
        assert len(rows_of(tmp_path / "x.jsonl", max_line_mb=1)) == 1


# ---------------------------------------------------------------- odd rows of sound files


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
@pytest.mark.parametrize(
    ("row", "code"),
    [
        ("[1, 2]", "not_an_object"),
        ('"text"', "not_an_object"),
        ("null", "not_an_object"),
        ("12", "not_an_object"),
        ('{"a": 1, "a": 2}', "repeated_key"),
        ('{"a": {"b": 1, "b": 1}}', "repeated_key"),
        ('{"a": %s}' % ("[" * 64 + "]" * 64), "nested_too_deep"),
        ('{"a": %s}' % ('{"b":' * 900 + "1" + "}" * 900), "nested_too_deep"),
    ],
)
def test_an_odd_row_is_handed_on_to_be_counted(
    name: str, row: str, code: str, tmp_path: Path
) -> None:
    around = ('[{"o": 1}, %s, {"o": 2}]' if name == "x.json" else '{"o": 1}\n%s\n{"o": 2}') % row
    (tmp_path / name).write_text(around)

    first, odd, last = rows_of(tmp_path / name)

    assert (first, last) == ({"o": 1}, {"o": 2})
    assert isinstance(odd, Quarantine)
    assert odd.code == code


def test_depth_and_not_the_number_of_lists_is_too_much(tmp_path: Path) -> None:
    row = {"wide": [[] for _ in range(900)], "deep": json.loads("[" * 63 + "]" * 63)}
    (tmp_path / "x.jsonl").write_text(json.dumps(row))

    assert rows_of(tmp_path / "x.jsonl") == [row]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=60)
@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=5),
       indent=st.sampled_from([None, 1]), ascii_only=st.booleans())  # fmt: skip
def test_an_array_reads_as_the_standard_library_reads_it(
    rows: list[dict[str, Any]], *, indent: int | None, ascii_only: bool, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("a") / "x.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        expected = json.loads(path.read_bytes().decode("utf-8"))
    except UnicodeDecodeError:
        assert "not UTF-8" in refusal(path)
    else:
        assert rows_of(path) == expected


def test_rows_larger_than_a_chunk_are_put_together(tmp_path: Path) -> None:
    rows = [{"n": n, "text": "ä" * size} for n, size in enumerate([70_000, 1, 65_536, 200_000, 3])]
    (tmp_path / "x.json").write_text(json.dumps(rows, ensure_ascii=False))

    assert rows_of(tmp_path / "x.json") == rows


@settings(max_examples=150)
@given(
    content=st.binary(min_size=1, max_size=200)
    | st.text(alphabet='[]{}",:ab\\u1 \n').map(str.encode),
    name=st.sampled_from(["x.jsonl", "x.json", "x.jsonl.gz", "x.json.gz", "x.parquet"]),
)
def test_no_bytes_crash_a_reader(content: bytes, name: str, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("b") / name
    path.write_bytes(content)

    with contextlib.suppress(DataRejected):  # any other error fails the test
        rows = rows_of(path, max_line_mb=0.0001)
        assert all(isinstance(row, dict | Quarantine) for row in rows)
