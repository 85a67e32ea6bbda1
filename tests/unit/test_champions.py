"""What evidence may say of a version's files, before one of them is copied or written."""

import json
from typing import Any

import pytest

from dpoflow.contracts.base import canonical_json, sha256_text
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.manifest import FileEntry
from dpoflow.registry.champions import sealed_of

ENTRY = FileEntry(sha256="e" * 64, num_bytes=9)


def manifest(kind: str, *names: str) -> dict[str, Any]:
    files = {name: {"sha256": sha256_text(name), "num_bytes": len(name)} for name in names}
    # contracts/manifest.py: sha256 over the canonical JSON of path to sha256.
    digest = sha256_text(canonical_json({name: sha256_text(name) for name in names}))
    return {
        "kind": kind,
        "digest": digest,
        "files": files,
        "parents": {},
        "config": {},
        "code": "",
    }


def evidence(*names: str) -> dict[str, Any]:
    policy = manifest("train.policy", *names)
    decision = manifest("evaluate.decision", "decision.json", "signature.json", "report.html")
    return {
        "roots": {"policy": policy["digest"], "decision": decision["digest"]},
        "manifests": {each["digest"]: each for each in (policy, decision)},
    }


def test_a_version_is_its_model_its_decision_the_signature_and_the_evidence() -> None:
    told = evidence("config.json", "shards/model-00001.safetensors")

    sealed = sealed_of(json.dumps(told).encode(), ENTRY, "desk/3")

    assert {name: each.sha256 for name, each in sealed.files.items()} == {
        "model/config.json": sha256_text("config.json"),
        "model/shards/model-00001.safetensors": sha256_text("shards/model-00001.safetensors"),
        "decision.json": sha256_text("decision.json"),
        "signature.json": sha256_text("signature.json"),
        "evidence.json": "e" * 64,
    }
    assert sealed.policy.digest == told["roots"]["policy"]


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a//b", "./a", "a\\..\\b", "..", "a/"]
)
def test_a_file_that_would_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(DataRejected, match="that is no name"):
        sealed_of(json.dumps(evidence(name)).encode(), ENTRY, "desk/3")


def test_evidence_whose_digest_is_not_that_of_its_files_is_refused() -> None:
    told = evidence("config.json")
    root = told["roots"]["policy"]
    told["manifests"][root]["files"]["config.json"]["sha256"] = "0" * 64

    with pytest.raises(DataRejected, match="says nothing true of its policy"):
        sealed_of(json.dumps(told).encode(), ENTRY, "desk/3")


def test_evidence_of_another_policy_under_this_root_is_refused() -> None:
    told, other = evidence("config.json"), evidence("other.json")
    told["manifests"][told["roots"]["policy"]] = other["manifests"][other["roots"]["policy"]]

    with pytest.raises(DataRejected, match="says nothing true of its policy"):
        sealed_of(json.dumps(told).encode(), ENTRY, "desk/3")


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"roots": {}, "manifests": {}}'])
def test_damaged_evidence_is_refused(text: bytes) -> None:
    with pytest.raises(DataRejected, match="is damaged"):
        sealed_of(text, ENTRY, "desk/3")
