"""Pinning models: made safetensors folders once, then found again by what their URIs hold.

Reads   models' URIs
Gives   `pin`, `pin_judges`: a folder in the content store
Not     loading or converting: see policy/load.py
"""

import importlib.util
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import dpoflow
from dpoflow.contracts import manifest
from dpoflow.contracts.judges import reward_folder
from dpoflow.contracts.spec import REGISTRY
from dpoflow.registry.lineage import VERSION
from dpoflow.snapshot import content
from dpoflow.state.step import code_digest, find


class Store(NamedTuple):
    """Where models are kept, and who hears of it."""

    root: Path
    work: Path
    """For drafts; on the same file system."""
    say: Callable[[str], None]


def pin(uri: str, store: Store) -> Path:
    """The model's folder in the content store. Seconds where an earlier run left it there."""
    return _pin("model", {uri: Path()}, store)


def pin_judges(uris: Iterable[str], store: Store) -> Path:
    """One folder with each reward model under the name that its config gives it."""
    return _pin("judges", {uri: Path(reward_folder(uri)) for uri in sorted(set(uris))}, store)


def _pin(kind: str, places: dict[str, Path], store: Store) -> Path:
    """A folder with the model of each URI at its place."""
    uris = ", ".join(places)
    name = uris if kind == "model" else f"{kind}: {uris}"  # the same model is another folder
    facts = _all_hold(places)
    if facts is not None and (known := content.remembered(store.root, name, facts)) is not None:
        store.say(f"{kind} {uris} is unchanged since it was last pinned")
        return known
    from dpoflow.policy.load import (
        check_reward_model,
        materialise,
    )  # torch: not before it is needed

    draft, trained = store.work / kind, dict[str, Any]()
    parents = dict[str, str]()
    shutil.rmtree(draft, ignore_errors=True)
    for uri, place in places.items():
        store.say(f"making {uri} a safetensors folder")
        (draft / place).parent.mkdir(parents=True, exist_ok=True)
        with _fetched(uri, store.work) as where:
            if uri.startswith(REGISTRY):
                trained, parents = _trained(Path(where)), _version(Path(where), store.root)
            materialise(where, draft / place, say=store.say)
        if kind == "judges":  # hours before it is loaded
            check_reward_model(draft / place, uri)
    config = {"uri": ", ".join(Path(uri).name for uri in places), **trained}
    sealed = manifest.seal(
        draft, f"snapshot.{kind}", parents=parents, config=config, code=code_digest()
    )
    folder = content.keep(draft, store.root, say=store.say)
    if facts is not None and facts == _all_hold(places):
        content.remember(store.root, name, facts, sealed.digest)
    return folder


def _all_hold(uris: Iterable[str]) -> dict[str, Any] | None:
    found = {uri: holds(uri) for uri in uris}
    return None if None in found.values() else found


@contextmanager
def _fetched(uri: str, work: Path) -> Iterator[str]:
    """The URI itself, or a folder that has what a version of the registry holds."""
    if not uri.startswith(REGISTRY):
        yield uri
        return
    from dpoflow.registry.versions import fetch

    with tempfile.TemporaryDirectory(dir=work) as folder:
        yield str(fetch(uri, Path(folder)))


def _trained(version: Path) -> dict[str, Any]:
    """What a version of the registry was made from, and how: reports hold it against others."""
    made = manifest.read(version)
    return {"trained": {"config": made.config, "parents": made.parents}}


def _version(version: Path, root: Path) -> dict[str, str]:
    """The policy that a version of the registry is, if it was made here: lineage goes on there."""
    digest = manifest.read(version).digest
    return {VERSION: digest} if find(root, digest) else {}


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
