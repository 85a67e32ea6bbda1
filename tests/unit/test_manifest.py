"""Manifests: a digest that is the content's, and nothing else's."""

import hashlib
import json
from pathlib import Path

import pytest

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import DataRejected


def folder_of(path: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def seal(path: Path) -> manifest.Manifest:
    return manifest.seal(path, "test.thing", parents={"up": "0" * 64}, config={"a": 1}, code="c")


def test_the_digest_is_sha256_over_names_and_content_as_anyone_can_compute_it(
    tmp_path: Path,
) -> None:
    sealed = seal(folder_of(tmp_path, b="two", a="one"))

    each = {name: hashlib.sha256(text).hexdigest() for name, text in (("a", b"one"), ("b", b"two"))}
    expected = hashlib.sha256(json.dumps(each, separators=(",", ":")).encode()).hexdigest()
    assert sealed.digest == expected


def test_where_a_folder_lies_and_what_made_it_do_not_change_its_digest(tmp_path: Path) -> None:
    here = seal(folder_of(tmp_path / "here", a="one"))
    there = manifest.seal(
        folder_of(tmp_path / "there", a="one"), "other.kind", parents={}, config={}, code="d"
    )

    assert here.digest == there.digest


@pytest.mark.parametrize("change", ["edit", "remove", "add", "rename"])
def test_any_change_after_sealing_is_found_and_named(tmp_path: Path, change: str) -> None:
    seal(folder_of(tmp_path, a="one", b="two"))
    if change == "edit":
        (tmp_path / "a").write_text("onf")
    elif change == "remove":
        (tmp_path / "a").unlink()
    elif change == "add":
        (tmp_path / "c").write_text("three")
    else:
        (tmp_path / "a").rename(tmp_path / "z")

    with pytest.raises(DataRejected, match="run that step again"):
        manifest.verify(tmp_path)


def test_a_manifest_rewritten_to_fit_forged_files_is_caught_by_its_digest(tmp_path: Path) -> None:
    sealed = seal(folder_of(tmp_path, a="one"))
    (tmp_path / "a").write_text("forged")
    entry = manifest.FileEntry(sha256=manifest.sha256_file(tmp_path / "a"), num_bytes=6)
    forged = sealed.model_copy(update={"files": {"a": entry}})
    (tmp_path / manifest.FILE_NAME).write_text(forged.model_dump_json())

    with pytest.raises(DataRejected, match="its digest is not that of its files"):
        manifest.verify(tmp_path)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(DataRejected, match="no artifact of dpoflow"):
        manifest.verify(tmp_path)
