"""Signed decisions: the RFC's own vectors, openssl's layout, and every bit that may be changed."""

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.spec import Spec
from dpoflow.registry.signature import check_key, sign, signer_of

# RFC 8032, 7.1, test 3
SEED = "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7"
PUBLIC = "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025"
MESSAGE = bytes.fromhex("af82")
SIGNED = (
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)


def pem(path: Path, key: object, how: KeySerializationEncryption | None = None) -> Path:
    path.write_bytes(
        key.private_bytes(  # type: ignore[attr-defined]  # every kind of key has it
            Encoding.PEM, PrivateFormat.PKCS8, how or NoEncryption()
        )
    )
    return path


@pytest.fixture
def decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the RFC's message for a decision; the RFC's key is at hand."""
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED))
    monkeypatch.setenv("DPOFLOW_SIGNING_KEY", str(pem(tmp_path / "key.pem", key)))
    (tmp_path / "decision").mkdir()
    (tmp_path / "decision" / "decision.json").write_bytes(MESSAGE)
    return tmp_path / "decision"


def test_a_signature_is_the_one_that_the_rfc_prints(decided: Path) -> None:
    sign(decided)

    told = json.loads((decided / "signature.json").read_text())
    assert told == {"algorithm": "ed25519", "signer": PUBLIC, "signature": SIGNED}
    assert signer_of(decided) == PUBLIC


def test_a_key_as_openssl_writes_it_signs(decided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8410: sixteen bytes that say `Ed25519`, then the seed; in PEM."""
    der = bytes.fromhex("302e020100300506032b657004220420" + SEED)
    text = base64.b64encode(der).decode()
    path = decided.with_name("openssl.pem")
    path.write_text(f"-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")
    monkeypatch.setenv("DPOFLOW_SIGNING_KEY", str(path))

    sign(decided)

    assert signer_of(decided) == PUBLIC
    assert check_key(PUBLIC) == f"signed by {PUBLIC}"


def test_one_changed_bit_anywhere_is_refused(decided: Path) -> None:
    sign(decided)
    path = decided / "decision.json"
    for at in range(8 * len(MESSAGE)):
        changed = bytearray(MESSAGE)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(DataRejected, match="changed after the evaluation"):
            signer_of(decided)
    path.write_bytes(MESSAGE)
    told = json.loads((decided / "signature.json").read_text())
    for at in range(0, len(SIGNED), 7):
        other = "0" if SIGNED[at] != "0" else "1"
        damaged = SIGNED[:at] + other + SIGNED[at + 1 :]
        (decided / "signature.json").write_text(json.dumps(told | {"signature": damaged}))
        with pytest.raises(DataRejected, match="changed after the evaluation"):
            signer_of(decided)


@pytest.mark.parametrize(
    "change",
    [
        {"signer": "00"},
        {"signer": "no hex"},
        {"signature": "no hex"},
        {"signature": None},
        {"algorithm": "none"},
    ],
)
def test_what_is_no_signature_is_refused(decided: Path, change: dict[str, object]) -> None:
    sign(decided)
    told = json.loads((decided / "signature.json").read_text())
    (decided / "signature.json").write_text(json.dumps(told | change))

    with pytest.raises(DataRejected):
        signer_of(decided)


def test_a_decision_without_a_signature_is_nobodys(decided: Path) -> None:
    assert signer_of(decided) is None
    told = check_key(None)
    assert told.startswith("unsigned: ")
    assert PUBLIC in told


def test_a_key_that_is_another_or_none_is_told_before_anything_is_spent(
    decided: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"is the key of {PUBLIC}"):
        check_key("0" * 64)
    secret = pem(
        decided.with_name("locked.pem"),
        Ed25519PrivateKey.generate(),
        BestAvailableEncryption(b"word"),
    )
    curve = pem(decided.with_name("curve.pem"), generate_private_key(SECP256R1()))
    garbage = decided.with_name("garbage.pem")
    garbage.write_text("swordfish")
    for path in (secret, curve, garbage):
        monkeypatch.setenv("DPOFLOW_SIGNING_KEY", str(path))
        with pytest.raises(ConfigError, match="no unencrypted Ed25519 key in PEM") as refused:
            check_key(PUBLIC)
        assert "swordfish" not in str(refused.value)
    monkeypatch.setenv("DPOFLOW_SIGNING_KEY", str(decided / "gone.pem"))
    with pytest.raises(ConfigError, match="cannot be read"):
        check_key(PUBLIC)
    monkeypatch.delenv("DPOFLOW_SIGNING_KEY")
    with pytest.raises(ConfigError, match="names no file with its private half"):
        check_key(PUBLIC)


def test_who_signs_is_who_must_have_signed_unless_the_spec_says_otherwise() -> None:
    spec = {"name": "x", "model": "m", "data": {"sources": [{"uri": "x"}]}}

    assert Spec.model_validate(spec).registry.signer is None
    signed = Spec.model_validate({**spec, "evaluate": {"signer": PUBLIC}})
    assert signed.registry.signer == PUBLIC
    other = {**spec, "evaluate": {"signer": PUBLIC}, "registry": {"signer": "0" * 64}}
    assert Spec.model_validate(other).registry.signer == "0" * 64
