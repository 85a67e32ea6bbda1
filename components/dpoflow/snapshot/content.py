"""The content store: folders named for the digest of what they hold.

    ROOT/content/<digest>/       files and a manifest; never changed once there
    ROOT/content/by-uri/         what a model's URI held when it was last looked at

Reads   a sealed draft on the same file system
Gives   `keep` (whole or not there), `remembered` and `remember`
Not     what is stored: see data.py and model.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.state import files
from dpoflow.state.step import index

Say = Callable[[str], None]


def keep(draft: Path, root: Path, *, say: Say) -> Path:
    """Move a sealed draft to where its digest says; an equal one that is already there stays."""
    digest = manifest.read(draft).digest
    target = root / "content" / digest
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and not is_whole(target, digest):
        say(f"the stored copy of {digest[:12]} was damaged; it is replaced")
        shutil.rmtree(target)
    try:
        draft.rename(target)
    except OSError:  # somebody put the same content there, now or earlier
        if not is_whole(target, digest):
            raise
        shutil.rmtree(draft)
    index(root, digest, target)
    return target


def is_whole(folder: Path, digest: str) -> bool:
    """Whether `folder` still holds exactly what was sealed under `digest`."""
    try:
        return manifest.verify(folder).digest == digest
    except DataRejected:
        return False


def remembered(root: Path, uri: str, facts: dict[str, Any]) -> Path | None:
    """The content that `uri` had when `facts` were the same as now, if it is still whole."""
    try:
        record = json.loads(_note(root, uri).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("facts") != facts:
        return None
    folder = root / "content" / str(record.get("digest"))
    return folder if is_whole(folder, folder.name) else None


def remember(root: Path, uri: str, facts: dict[str, Any], digest: str) -> None:
    """Note what `uri` held."""
    record = {"uri": uri, "facts": facts, "digest": digest}
    files.write_text(_note(root, uri), json.dumps(record, indent=1) + "\n")


def _note(root: Path, uri: str) -> Path:
    return root / "content" / "by-uri" / f"{sha256_json(uri)}.json"
