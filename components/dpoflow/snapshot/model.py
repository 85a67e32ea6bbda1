"""Pinning the model: made a safetensors folder once, then found again by what its URI holds.

Reads   the model's URI
Gives   `pin`: the folder in the content store
Not     loading or converting: see policy/load.py
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import dpoflow
from dpoflow.contracts import manifest
from dpoflow.contracts.spec import REGISTRY
from dpoflow.snapshot import content
from dpoflow.state.step import StepState, code_digest


def pin(uri: str, state: StepState) -> Path:
    """The model's folder in the content store. Seconds where an earlier run left it there."""
    facts = holds(uri)
    if facts is not None and (known := content.remembered(state.root, uri, facts)) is not None:
        state.events.say(f"model {uri} is unchanged since it was last pinned")
        return known
    from dpoflow.policy.load import materialise  # torch: not before it is needed

    state.events.say(f"making {uri} a safetensors folder")
    draft = state.work / "model"
    shutil.rmtree(draft, ignore_errors=True)
    with _fetched(uri, state.work) as where:
        materialise(where, draft, say=state.events.say)
    sealed = manifest.seal(
        draft, "snapshot.model", parents={}, config={"uri": Path(uri).name}, code=code_digest()
    )
    folder = content.keep(draft, state.root, say=state.events.say)
    if facts is not None and facts == holds(uri):
        content.remember(state.root, uri, facts, sealed.digest)
    return folder


@contextmanager
def _fetched(uri: str, work: Path) -> Iterator[str]:
    """The URI itself, or a folder that has what a version of the registry holds."""
    if not uri.startswith(REGISTRY):
        yield uri
        return
    from dpoflow.registry.versions import fetch

    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield str(fetch(uri, Path(folder)))


def holds(uri: str) -> dict[str, Any] | None:
    """What can be known cheaply of a URI's content; None where only looking would tell."""
    scheme, _, rest = uri.rpartition("://")
    if uri.startswith(REGISTRY):
        from dpoflow.registry.versions import identify

        found: dict[str, Any] | None = identify(uri)
    elif scheme == "package":
        found = _package(rest.partition("/")[0])
    elif scheme in ("", "file"):
        found = _listing(Path(rest).expanduser())
    elif scheme == "hf":
        revision = rest.partition("@")[2]
        fixed = len(revision) == 40 and set(revision) <= set("0123456789abcdef")
        found = {"revision": revision} if fixed else None  # a branch may move
    else:
        found = None
    return None if found is None else {**found, "made_by": _maker()}


def _package(name: str) -> dict[str, Any] | None:
    installed = sorted(set(metadata.packages_distributions().get(name, [])))
    return {"versions": {each: metadata.version(each) for each in installed}} if installed else None


def _listing(path: Path) -> dict[str, Any] | None:
    try:
        within = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = {each.name: each.stat() for each in within}
    except OSError:
        return None  # materialise will say what is wrong
    return {"files": {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}}


def _maker() -> dict[str, str]:
    """The code and libraries that write the folder: another maker may write other bytes."""
    loader = Path(dpoflow.__file__).parent / "policy" / "load.py"
    made_by = {"loader": manifest.sha256_file(loader)}
    for library in ("torch", "transformers", "gguf"):
        if importlib.util.find_spec(library) is not None:
            made_by[library] = metadata.version(library)
    return made_by
