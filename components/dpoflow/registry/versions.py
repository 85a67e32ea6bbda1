"""Model versions in MLflow's registry.

Reads   a policy directory, reports, tags
Gives   `record_version`, once per evidence; `read_version` for a trace; `identify`, `fetch`,
        `recorded`, `pairs_of`, `data_of` and `sides_of` for what a `models:/` URI names, `aliased`
        for what aliases do
Not     verdicts (evaluate/), the walk to the sources (lineage.py)
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dpoflow.contracts import manifest
from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, DataRejected, ServiceUnavailable
from dpoflow.contracts.manifest import Manifest
from dpoflow.contracts.results import RegisterResult
from dpoflow.contracts.spec import REGISTRY
from dpoflow.registry.lineage import VERSION, Evidence
from dpoflow.registry.submission import TAG
from dpoflow.state.files import publish, write_text
from dpoflow.state.step import find
from dpoflow.tracking.settings import public, quiet_mlflow, quoted
from dpoflow.tracking.step_run import STEP_RUN

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER: Literal["challenger"] = "challenger"


def _client() -> "MlflowClient":
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        raise ConfigError("no registry to record in: set MLFLOW_TRACKING_URI")
    quiet_mlflow()
    from mlflow import MlflowClient

    return MlflowClient()


def record_version(
    name: str,
    policy: Path,
    *,
    reports: Mapping[str, Path],
    alias: Literal["challenger"] | None,
    description: Callable[[str, str], str],
    tags: Mapping[str, str],
    memory: Path,
) -> RegisterResult:
    """One version for one `dpoflow.evidence` tag; what a killed attempt began is finished.

    `description` is given the experiment and the logged model, which it may link to.
    The order makes that safe: the model is logged under an id noted in `memory`, then the
    version is created with its tags in one call, then the alias is set.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    try:
        with contextlib.suppress(MlflowException):  # it exists already
            client.create_registered_model(name)
        version = _find(client, name, tags)
        if version is None:
            experiment = client.get_run(os.environ[STEP_RUN]).info.experiment_id
            model_id, uri = _log_model(client, name, policy, reports, memory, experiment)
            created = client.create_model_version(
                name,
                source=uri,
                run_id=os.environ.get(STEP_RUN),
                tags=dict(tags),
                description=description(str(experiment), model_id),
                model_id=model_id,
            )
            version = int(created.version)
        if alias is not None:
            client.set_registered_model_alias(name, alias, str(version))
    except MlflowException as error:
        raise ServiceUnavailable(
            f"MLflow did not take the version of {name} ({quoted(error.message)}); try again"
        ) from error
    return RegisterResult(
        model=name,
        version=version,
        alias=alias,
        digest=tags["dpoflow.policy_digest"],
        uri=f"models:/{name}/{version}",
    )


def _find(client: "MlflowClient", name: str, tags: Mapping[str, str]) -> int | None:
    """The version with this evidence; if a submission is quoted, one that quotes any, too.

    Nobody can approve a version without a submission, and none is added afterwards.
    """
    for found in client.search_model_versions(f"name = '{name}'"):
        same = found.tags.get("dpoflow.evidence") == tags["dpoflow.evidence"]
        if same and (TAG not in tags or TAG in found.tags):
            return int(found.version)
    return None


def _log_model(
    client: "MlflowClient",
    name: str,
    policy: Path,
    reports: Mapping[str, Path],
    memory: Path,
    experiment: str,
) -> tuple[str, str]:
    """Log the model from its directory; returns its id and the URI of its files."""
    import mlflow

    run_id, model = os.environ[STEP_RUN], None
    with contextlib.suppress(FileNotFoundError, ValueError, mlflow.MlflowException):
        model = client.get_logged_model(json.loads(memory.read_text("utf-8"))["model_id"])
    if model is None:
        model = client.create_logged_model(experiment, name=name, source_run_id=run_id)
        write_text(memory, json.dumps({"model_id": model.model_id}))
    with tempfile.TemporaryDirectory(dir=memory.parent) as draft:
        folder = Path(draft) / "model"
        _mlflow_folder(policy, folder, reports, model_id=model.model_id, run_id=run_id)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id), str(model.model_uri)


def _mlflow_folder(
    policy: Path, folder: Path, reports: Mapping[str, Path], *, model_id: str, run_id: str
) -> None:
    """A folder that MLflow's transformers flavour loads, made of hard links: no weight is copied.

    Written by hand because `mlflow.transformers.save_model` copies the weights and loads them to
    guess what they need; the layout is that of MLflow 3.17.
    """
    from mlflow.models import Model

    publish(policy, folder / "model")
    tokenizer = folder / "components" / "tokenizer"
    publish(policy, tokenizer)
    for weights in tokenizer.glob("*.safetensors*"):
        weights.unlink()
    for name, report in reports.items():
        (folder / name).write_bytes(report.read_bytes())
    config = json.loads((policy / "config.json").read_text("utf-8"))
    described = Model(run_id=run_id, model_id=model_id)
    described.add_flavor(
        "transformers",
        transformers_version=installed("transformers"),
        code=None,
        task="text-generation",
        instance_type="TextGenerationPipeline",
        framework="pt",
        pipeline_model_type=config["architectures"][0],
        model_binary="model",
        torch_dtype="torch.float32",
        components=["tokenizer"],
        tokenizer_type="PreTrainedTokenizerFast",
    )
    described.save(str(folder / "MLmodel"))


@dataclass(frozen=True)
class RecordedVersion:
    """A version as the registry holds it, with its evidence."""

    name: str
    version: int
    aliases: tuple[str, ...]
    evidence: Evidence


def read_version(name: str, version: int) -> RecordedVersion:
    """A version's evidence, held against its tag, and its model files against the evidence."""
    found = _look_up(name, str(version))
    with tempfile.TemporaryDirectory() as folder:
        fetch(f"models:/{name}/{version}", Path(folder))
        evidence = _evidence(found, Path(folder))
    return RecordedVersion(
        name=name,
        version=version,
        aliases=_aliases(_client(), name, version),
        evidence=evidence,
    )


def identify(uri: str) -> dict[str, str]:
    """What `models:/NAME/VERSION` or `models:/NAME@ALIAS` names today."""
    found = _named(uri)
    return {"version": f"{found.name}/{found.version}", "source": str(found.source)}


def champion_of(uri: str) -> str | None:
    """The version that `models:/NAME@ALIAS` names today, as `models:/NAME/VERSION`; None: none yet.

    Raises ServiceUnavailable where MLflow does not tell: an outage is not an absence.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return None
    try:
        return f"{REGISTRY}{identify(uri)['version']}"
    except ConfigError:
        return None


def fetch(uri: str, folder: Path) -> Path:
    """The model's folder of a version, copied into `folder` and held against its evidence."""
    found = _named(uri)
    local = _downloaded(found, folder)
    evidence = _evidence(found, local)
    recorded = evidence.manifests[evidence.roots["policy"]]
    if manifest.verify(local / "model").digest != recorded.digest:
        raise DataRejected(
            f"the model of {found.name}/{found.version} in MLflow is not the one that was evaluated"
        )
    return local / "model"


@dataclass(frozen=True)
class Recorded:
    """A version by its evidence, of which no weight was fetched."""

    name: str
    """NAME/VERSION."""
    created: float
    """Seconds since 1970."""
    evidence: Evidence

    def of_kind(self, kind: str) -> Manifest | None:
        """The artifact of that kind that the version itself rests on, not what it started from."""
        seen, waiting = set[str](), [*self.evidence.roots.values()]
        while waiting:
            digest = waiting.pop(0)
            made = self.evidence.manifests.get(digest)
            if made is None or digest in seen:
                continue
            if made.kind == kind:
                return made
            seen.add(digest)
            waiting += [each for name, each in made.parents.items() if name != VERSION]
        return None


def recorded(uri: str) -> Recorded:
    """What a `models:/` URI names. DataRejected where dpoflow did not record it."""
    found = _named(uri)
    with tempfile.TemporaryDirectory() as folder:
        _downloaded(found, Path(folder), "/evidence.json")
        evidence = _evidence(found, Path(folder))
    return Recorded(
        name=f"{found.name}/{found.version}",
        created=int(found.creation_timestamp) / 1000,
        evidence=evidence,
    )


def aliased(names: Iterable[str]) -> Iterator[Recorded]:
    """Each version that an alias of these models names; those that others recorded are left out.

    Raises DataRejected where the files of one are gone, ServiceUnavailable where MLflow does not
    tell.
    """
    from mlflow.exceptions import MlflowException

    client = _client()
    for name in names:
        try:
            aliases = client.get_registered_model(name).aliases
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                continue
            raise ServiceUnavailable(
                f"MLflow does not tell the aliases of {name} ({quoted(error.message)}); try again"
            ) from None
        for version in sorted({int(each) for each in aliases.values()}):
            if "dpoflow.evidence" in _look_up(name, str(version)).tags:
                yield recorded(f"{REGISTRY}{name}/{version}")


def pairs_of(uri: str, root: Path) -> list[Path]:
    """The files of pairs and ratings that a version was trained on, if this root has them."""
    version = recorded(uri)
    digest = version.evidence.manifests[version.evidence.roots["policy"]].parents["pairs"]
    artifact = find(root, digest)
    if artifact is None or not artifact.is_dir():
        raise DataRejected(
            f"the pairs {digest[:12]}… that {version.name} was trained on are not "
            f"under {root}; name the home it was made in with --home, or a file of pairs"
        )
    return [path for path in sorted(artifact.glob("*.parquet")) if _has_rows(path)]


def data_of(uri: str, root: Path) -> list[Path]:
    """The folders of pinned data that a version rests on. DataRejected where they are not here."""
    version = recorded(uri)
    return [data_folder(version, root)]


def data_folder(version: Recorded, root: Path) -> Path:
    """The pinned data that a version rests on. DataRejected where they are not here."""
    made = version.of_kind("snapshot.data")
    folder = find(root, made.digest) if made else None
    if folder is None or not folder.is_dir():
        raise DataRejected(
            f"the data of {version.name} is not under {root}, so nobody can tell "
            "what is new; name its home with --home, or leave data.sources[].since out"
        )
    return folder


_SIDES: dict[Literal["heldout", "learnt"], tuple[str, tuple[str, ...]]] = {
    "heldout": ("merge.heldout", ("prompts.parquet",)),
    "learnt": ("merge.training", ("ratings.parquet", "train.parquet")),
}
"""The artifact of each side, and those of its files that have prompts."""


def sides_of(uri: str, root: Path) -> dict[Literal["heldout", "learnt"], list[Path]]:
    """Files with the prompts that a version was tested with, and with those it learnt from.

    DataRejected where they are not here.
    """
    version, found = recorded(uri), dict[Literal["heldout", "learnt"], list[Path]]()
    for role, (kind, wanted) in _SIDES.items():
        made = version.of_kind(kind)
        folder = find(root, made.digest) if made else None
        if folder is None or not folder.is_dir():
            raise DataRejected(f"{kind} of {version.name} is not under {root}")
        there = (folder / name for name in wanted if (folder / name).is_file())
        found[role] = [path for path in there if _has_rows(path)]
    return found


def _has_rows(path: Path) -> bool:
    """A version that learnt from thumbs alone has a file of pairs with none in it."""
    from pyarrow.parquet import read_metadata  # not where a version is only named

    return bool(read_metadata(path).num_rows)


def _downloaded(found: "ModelVersion", folder: Path, within: str = "") -> Path:
    """The files of a version, or one of them. Raises ServiceUnavailable, DataRejected."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    what = f"{found.name}/{found.version}"
    try:
        return Path(download_artifacts(f"{REGISTRY}{what}{within}", dst_path=str(folder)))
    except (MlflowException, OSError) as error:
        told = quoted(error.message) if isinstance(error, MlflowException) else error.strerror
        if isinstance(error, FileNotFoundError) or "No such artifact" in str(error):
            raise DataRejected(
                f"files of {what} are gone from MLflow's artifact store; name another version"
            ) from None
        raise ServiceUnavailable(
            f"MLflow does not hand out the files of {what} ({told}); check its artifact store and "
            "try again"
        ) from None


def _named(uri: str) -> "ModelVersion":
    """The version that a `models:/` URI names. ConfigError where there is none."""
    rest = uri.removeprefix(REGISTRY)
    name, at, alias = rest.partition("@")
    if at:
        return _look_up(name, alias, by_alias=True)
    name, _, version = rest.rpartition("/")
    if not name or not version.isdecimal():
        raise ConfigError(
            f"{uri} names no version; write models:/NAME/VERSION or models:/NAME@ALIAS"
        )
    return _look_up(name, version)


def _look_up(name: str, version: str, *, by_alias: bool = False) -> "ModelVersion":
    import mlflow

    client = _client()
    ask = client.get_model_version_by_alias if by_alias else client.get_model_version
    what = f"{name}@{version}" if by_alias else f"{name}/{version}"
    try:
        return ask(name, version)
    except mlflow.MlflowException as error:
        where = public(mlflow.get_tracking_uri())
        absent = error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
        if not absent and not (error.error_code == "PERMISSION_DENIED" and _is_new(client, name)):
            raise ServiceUnavailable(
                f"MLflow at {where} does not tell of {what} ({quoted(error.message)}); "
                "check MLFLOW_TRACKING_URI and try again"
            ) from None
        way_out = (
            f"until a version has the alias {version}, name another model, such as base"
            if by_alias
            else "the end of a run and its summary.json name the version that it recorded"
        )
        raise ConfigError(f"no version {what} in MLflow at {where}; {way_out}") from None


def _is_new(client: "MlflowClient", name: str) -> bool:
    """Whether there is no such model. Asked for its versions, basic-auth says that one may not."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_registered_model(name)
    except MlflowException as error:
        return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")
    return False


def _evidence(found: "ModelVersion", folder: Path) -> Evidence:
    """What the version rests on, held against its tag."""
    what = f"{found.name}/{found.version}"
    try:
        text = (folder / "evidence.json").read_text("utf-8")
    except FileNotFoundError:
        raise DataRejected(f"{what} brings no evidence.json: dpoflow did not record it") from None
    evidence = Evidence.model_validate_json(text)
    _check_evidence(evidence, found.tags, what)
    return evidence


def _aliases(client: "MlflowClient", name: str, version: int) -> tuple[str, ...]:
    aliases = client.get_registered_model(name).aliases
    return tuple(sorted(alias for alias, of in aliases.items() if int(of) == version))


def evidence_tag(policy_digest: str, decision_digest: str) -> str:
    """The tag that names what a version rests on."""
    return sha256_json([policy_digest, decision_digest])


def _check_evidence(evidence: Evidence, tags: Mapping[str, str], what: str) -> None:
    stated = evidence_tag(evidence.roots["policy"], evidence.roots["decision"])
    if tags.get("dpoflow.evidence") != stated:
        raise DataRejected(
            f"the evidence of {what} is not that of its tag dpoflow.evidence: "
            "it belongs to another version"
        )
