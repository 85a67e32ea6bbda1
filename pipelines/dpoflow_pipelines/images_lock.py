"""The digests of our container images, as whoever built them wrote them down.

    dpoflow-python-cpu:0.1.0 registry.example/dpoflow-python-cpu@sha256:…    one line an image

Reads   an images.lock
Gives   `read_lock`, `default_lock`; `is_pinned`
Not     building images (infra/images)
"""

import re
from pathlib import Path

from dpoflow.contracts.errors import ConfigError

_PINNED = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_REPOSITORY = Path(__file__).parents[2]


def is_pinned(image: str) -> bool:
    """Whether an image is named by what is in it, and not by a tag that moves."""
    return _PINNED.fullmatch(image) is not None


def read_lock(path: Path) -> dict[str, str]:
    """Name and tag of each image to its name with a digest. Raises ConfigError."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the lock of images {path} cannot be read ({error})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or not is_pinned(words[1]):
            raise ConfigError(
                f"{path}, line {number}: '{line.strip()}' is not NAME:TAG NAME@sha256:DIGEST"
            )
        if words[0] in found:
            raise ConfigError(f"{path}, line {number}: {words[0]} stands there twice")
        found[words[0]] = words[1]
    return found


def default_lock() -> dict[str, str]:
    """What the repository's own lock says; nothing where there is none."""
    path = _REPOSITORY / "infra" / "images" / "images.lock"
    return read_lock(path) if path.is_file() else {}
