"""Any step alone, outside a pipeline: the same function, the same state.

Reads   a step's config file and artifact folders
Gives   `run_step`, `STEPS`
Not     the order of steps (align.py)
"""

import importlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from dpoflow.contracts import manifest, results, spec
from dpoflow.contracts.base import Contract
from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec_file import sentence
from dpoflow.state import files
from dpoflow.state.step import Task
from dpoflow_pipelines.runs import in_use


@dataclass(frozen=True)
class Step:
    """Where a step's function is, and what goes in and out of it."""

    function: str
    config: type[Contract]
    result: type[Contract]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Inputs that may be absent."""


STEPS = {
    "snapshot": Step(
        "dpoflow.snapshot.step:run", spec.SnapshotConfig, results.SnapshotResult, (), ("origins",)
    ),
    "decide": Step(
        "dpoflow.decide.step:run", spec.DecideConfig, results.DecideResult, ("data",), ()
    ),
    "validate": Step(
        "dpoflow.validate.step:run",
        spec.ValidateConfig,
        results.ValidateResult,
        ("data",),
        ("pairs", "prompts", "report"),
        optional=("model",),
    ),
    "synthesize": Step(
        "dpoflow.synthesize.step:run",
        spec.SynthesizeConfig,
        results.SynthesizeResult,
        ("prompts", "model"),
        ("pairs",),
        optional=("judges",),
    ),
    "merge": Step(
        "dpoflow.validate.step:merge",
        spec.ValidateConfig,
        results.ValidateResult,
        ("pairs", "prompts", "synthetic"),
        ("training", "heldout", "report"),
    ),
    "train": Step(
        "dpoflow.train.step:run",
        spec.TrainConfig,
        results.TrainResult,
        ("pairs", "init", "reference"),
        ("policy", "report"),
    ),
    "evaluate": Step(
        "dpoflow.evaluate.step:run",
        spec.EvaluateConfig,
        results.EvaluateResult,
        ("model", "policy", "pairs", "heldout"),
        ("decision",),
        optional=("judges", "champion", "data"),
    ),
    "register": Step(
        "dpoflow.register.step:run",
        spec.RegistryConfig,
        results.RegisterResult,
        ("policy", "decision"),
        ("evidence",),
    ),
}


def run_step(
    name: str, config: Path, inputs: Sequence[str], outputs: Sequence[str], home: Path
) -> str:
    """Run step `name`; returns its result as JSON."""
    if name not in STEPS:
        raise ConfigError(f"no step '{name}'; known: {', '.join(STEPS)}")
    step = STEPS[name]
    given = _named(inputs, step.inputs, "--in", name, step.optional)
    for key, path in given.items():
        if not Path(path).is_dir():
            raise ConfigError(f"--in {key}={path}: no such folder; name an artifact of a step")
    targets = _named(outputs, step.outputs, "--out", name)
    for key, path in targets.items():
        _check_target(key, Path(path))
    knobs = _read_config(config, step.config)
    module, _, attribute = step.function.partition(":")
    with in_use(files.writable_folder(home, "the home")):
        task = Task(name)
        task.begin()
        function = getattr(importlib.import_module(module), attribute)
        result = task.execute(
            function,
            knobs,
            root=str(home),
            inputs=given,
            outputs=targets,
            kind=step.result,
            reuse=name not in ("snapshot", "decide", "register"),
        )
    return result.model_dump_json(indent=2)


def _named(
    given: Sequence[str],
    wanted: tuple[str, ...],
    option: str,
    step: str,
    optional: tuple[str, ...] = (),
) -> dict[str, str]:
    found = {}
    for text in given:
        key, _, path = text.partition("=")
        if key not in wanted + optional or not path:
            names = ", ".join(wanted + optional) or "none"
            raise ConfigError(f"{option} {text}: {step} takes NAME=PATH for: {names}")
        found[key] = str(Path(path).resolve())
    missing = [key for key in wanted if key not in found]
    if missing:
        wants = " ".join(f"{option} {key}=PATH" for key in missing)
        raise ConfigError(f"{step} also needs {wants}")
    return found


def _check_target(key: str, path: Path) -> None:
    """An output takes the place of what lies there, so that may only be an output itself."""
    if path.is_dir() and any(path.iterdir()) and not (path / manifest.FILE_NAME).is_file():
        raise ConfigError(
            f"--out {key}={path}: the folder holds other things, which would be deleted; "
            "name a new folder"
        )
    if path.exists() and not path.is_dir():
        raise ConfigError(f"--out {key}={path}: this is a file; name a new folder")


def _read_config(path: Path, kind: type[Contract]) -> Contract:
    try:
        values = YAML(typ="safe").load(io.StringIO(path.read_text("utf-8")))
        return kind.model_validate(values or {})
    except OSError as error:
        raise ConfigError(f"the config {path} cannot be read ({error.strerror})") from None
    except YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    except ValidationError as error:
        told = sentence(error.errors()[0])
        raise ConfigError(
            f"{told} ({path.name}: a step takes its own section of a spec, not the whole)"
        ) from None
