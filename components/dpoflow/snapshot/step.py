"""The snapshot step: pin every source and the model by content.

Reads   files and folders that people may edit, a model's URI
Gives   `run`: two folders named for their digests, in the content store all steps share
Not     rows (validate/), model internals (policy/)
"""

from dpoflow.contracts.results import SnapshotResult
from dpoflow.contracts.spec import SnapshotConfig
from dpoflow.snapshot import content, data, model
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.step import StepState


def run(config: SnapshotConfig, *, state: StepState) -> SnapshotResult:
    """Pin data, then the model: a wrong path should not cost a conversion of a model."""
    located = data.find(config.sources, state.events)
    sealed = data.pin(located, state.work / "data", state.events)
    pinned = content.keep(state.work / "data", state.root, say=state.events.say)
    policy = model.pin(config.model, state)
    state.events.say(
        f"pinned {len(located)} data files as {sealed.digest[:12]}, the model as {policy.name[:12]}"
    )
    return SnapshotResult(
        data_uri=str(pinned.resolve()),
        data_digest=sealed.digest,
        model_uri=str(policy.resolve()),
        model_digest=policy.name,
        num_files=len(located),
        num_bytes=sum(entry.num_bytes for entry in read_pinned(pinned)),
    )
