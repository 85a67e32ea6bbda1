"""The snapshot step: pin every source and the model by content.

Reads   files and folders that people may edit, a model's URI
Gives   `run`: two folders named for their digests, in the content store all steps share
Not     rows (validate/), model internals (policy/)
"""

from pathlib import Path

from dpoflow.contracts.results import SnapshotResult
from dpoflow.contracts.spec import CHAMPION, REGISTRY, SnapshotConfig, names_alias
from dpoflow.snapshot import content, data, model
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.step import StepState

ORIGINS = "origins.json"


def run(config: SnapshotConfig, *, state: StepState, origins: Path | None = None) -> SnapshotResult:
    """Pin data, then models: a wrong path should not cost a conversion of a model."""
    located = data.find(config, state.root, state.events)
    sealed = data.pin(located, state.work / "data", state.events)
    pinned = content.keep(state.work / "data", state.root, say=state.events.say)
    if origins is not None:
        data.write_origins(located, pinned, origins / ORIGINS)
    store = model.Store(state.root, state.work, state.events.say)
    base = model.pin(config.model, store)
    begins = _there_yet(config.init, config, store) or config.model
    init = model.pin(begins, store) if begins != config.model else base
    held_to = _there_yet(config.reference, config, store) or begins
    known = {config.model: base, begins: init}
    reference = known.get(held_to) or model.pin(held_to, store)
    judges = model.pin_judges(config.judges, store) if config.judges else None
    champion = _champion(config.champion, store)
    state.events.say(
        f"pinned {len(located)} data files as {sealed.digest[:12]}, the model as {base.name[:12]}"
    )
    return SnapshotResult(
        data_uri=str(pinned.resolve()),
        data_digest=sealed.digest,
        model_uri=str(base.resolve()),
        model_digest=base.name,
        init_uri=str(init.resolve()),
        init_digest=init.name,
        reference_uri=str(reference.resolve()),
        reference_digest=reference.name,
        judges_uri=str(judges.resolve()) if judges else "",
        judges_digest=judges.name if judges else "",
        champion_uri=str(champion.resolve()) if champion else "",
        champion_digest=champion.name if champion else "",
        num_files=len(located),
        num_bytes=sum(entry.num_bytes for entry in read_pinned(pinned)),
    )


def _there_yet(uri: str | None, config: SnapshotConfig, store: model.Store) -> str | None:
    """The URI of a model; of a schedule None where its alias names no version yet."""
    if uri is None or not (config.unattended and names_alias(uri)):
        return uri
    from dpoflow.registry.versions import champion_of

    version = champion_of(uri)
    if version is None:
        store.say(f"{uri} names no version yet: the base stands in for it")
    return version


def _champion(uri: str | None, store: model.Store) -> Path | None:
    """The folder of the model that is to be replaced; None where there is none yet."""
    if uri is None:
        return None
    if uri.startswith(REGISTRY) and uri.endswith(f"@{CHAMPION}"):
        from dpoflow.registry.versions import champion_of

        version = champion_of(uri)
        if version is None:
            store.say(f"{uri} names no version yet: the candidate is compared with the base alone")
            return None
        store.say(f"the champion is {version}")
        uri = version  # the alias may move while this runs
    return model.pin(uri, store)
