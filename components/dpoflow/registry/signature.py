"""Who vouches for a decision: Ed25519 over the bytes of decision.json (RFC 8032).

    decision.json       what is signed
    signature.json      algorithm, signer (public key) and signature, in hex

Reads   DPOFLOW_SIGNING_KEY: a file with the private key (PEM, unencrypted), which only those who
        evaluate should be able to open
Gives   `check_key` before anything is spent, `sign`, `signer_of`
Not     whose signature is asked for: that is the spec's, and the registry's
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.state.files import write_text

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEY_FILE = "DPOFLOW_SIGNING_KEY"
DECISION = "decision.json"
SIGNATURE = "signature.json"


def check_key(signer: str | None) -> str:
    """What to say of signing as `signer`. Raises ConfigError where its private key is not here."""
    if signer is None:
        here = f"; {KEY_FILE} is the key of {_public(_key())}" if os.environ.get(KEY_FILE) else ""
        return f"unsigned: evaluate.signer names nobody who vouches for this decision{here}"
    if (found := _public(_key())) != signer:
        raise ConfigError(
            f"evaluate.signer is {signer}, and {KEY_FILE} is the key of {found}; name that, or "
            "mount the other"
        )
    return f"signed by {signer}"


def sign(folder: Path) -> None:
    """Put signature.json beside the decision in `folder`."""
    key = _key()
    told = {
        "algorithm": "ed25519",
        "signer": _public(key),
        "signature": key.sign((folder / DECISION).read_bytes()).hex(),
    }
    write_text(folder / SIGNATURE, json.dumps(told, indent=1) + "\n")


def signer_of(folder: Path) -> str | None:
    """Whose key signed the decision in `folder`; None where nobody's did.

    Raises DataRejected where the signature is not of these bytes.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    path = folder / SIGNATURE
    if not path.exists():
        return None
    try:
        told = json.loads(path.read_text("utf-8"))
        signer, signature = str(told["signer"]), bytes.fromhex(told["signature"])
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer))
    except (ValueError, TypeError, KeyError) as error:
        raise DataRejected(
            f"{path} is no signature ({type(error).__name__}: {error}); evaluate again"
        ) from None
    if told.get("algorithm") != "ed25519":
        raise DataRejected(f"{path} is signed by {told.get('algorithm')!r}; ed25519 is known here")
    try:
        key.verify(signature, (folder / DECISION).read_bytes())
    except InvalidSignature:
        raise DataRejected(
            f"{folder / DECISION} is not what {signer} signed: it was changed after the "
            "evaluation, or the signature is another's; evaluate again"
        ) from None
    return signer


def _key() -> "Ed25519PrivateKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    path = os.environ.get(KEY_FILE)
    if not path:
        raise ConfigError(
            f"evaluate.signer names a key, and {KEY_FILE} names no file with its private half; "
            "mount it, or leave evaluate.signer out"
        )
    try:
        key = load_pem_private_key(Path(path).read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(
            f"{KEY_FILE} {path} cannot be read ({error.strerror}); name a file with the key"
        ) from None
    except (ValueError, TypeError, UnsupportedAlgorithm):  # whose words may quote the file
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(
            f"{KEY_FILE} {path} holds no unencrypted Ed25519 key in PEM; make one with "
            "openssl genpkey -algorithm ed25519 -out FILE"
        )
    return key


def _public(key: "Ed25519PrivateKey") -> str:
    return key.public_key().public_bytes_raw().hex()
