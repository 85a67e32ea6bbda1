"""What the champion was made from, by its evidence.

Reads   MLflow's registry, and the artifacts of this root
Gives   `look_up`: the champion and the folder of its data; `changes`
Not     what follows from that (verdict.py)
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dpoflow.contracts import manifest
from dpoflow.contracts.base import canonical_json
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.spec import (
    DecideConfig,
    ModelRole,
    SynthesizeConfig,
    TrainConfig,
    ValidateConfig,
)
from dpoflow.decide.verdict import Champion
from dpoflow.registry.versions import Recorded, champion_of, data_folder, recorded

_SHOWN = 60
"""Characters of a value in a sentence."""
_MADE_BY = {
    "data": ("validate.pairs", ValidateConfig()),
    "synthesize": ("synthesize.pairs", SynthesizeConfig(enabled=False)),
    "train": ("train.policy", TrainConfig()),
}
"""Section to the artifact that has it in its manifest, and to its defaults."""
_PARENTS: dict[ModelRole, tuple[str, str]] = {
    "model": ("evaluate.decision", "model"),
    "init": ("train.policy", "init"),
    "reference": ("train.policy", "reference"),
}


def look_up(config: DecideConfig, root: Path) -> tuple[Champion | None, Path | None]:
    """The champion, if there is one yet, and the folder of the data that it rests on."""
    uri = champion_of(config.champion)
    if uri is None:
        return None, None
    unknown: str | None = None
    folder: Path | None = None
    try:
        version = recorded(uri)
    except DataRejected as error:
        name = uri.removeprefix("models:/")
        return Champion(name, age_days=0.0, unknown=str(error)), None
    try:
        folder = data_folder(version, root)
        manifest.verify(folder)
    except DataRejected:
        unknown = f"its data is not under {root}, or not whole"
        folder = None
    age = max(0.0, time.time() - version.created) / 86400
    return Champion(version.name, age, dict(_changed(config, version)), unknown), folder


def _changed(config: DecideConfig, version: Recorded) -> Iterator[tuple[str, tuple[str, str]]]:
    for role in config.fixed:
        kind, parent = _PARENTS[role]
        made, now = version.of_kind(kind), config.digests.get(role)
        before = made.parents.get(parent) if made else None
        if now is not None and before is not None and now != before:
            knob = role if role == "model" else f"train.{role}"
            yield knob, (before[:12], now[:12])
    for section, now_config in config.sections.items():
        kind, defaults = _MADE_BY[section]
        made = version.of_kind(kind)
        if made is not None:
            whole = defaults.model_dump(mode="json")
            for knob, both in changes(whole | made.config, whole | now_config, now_config):
                yield f"{section}.{knob}", both


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], knobs: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[str, str]]]:
    """Which of `knobs` differ. One that an earlier release did not know had its default."""
    if not before.get("enabled", True) and not now.get("enabled", True):
        return  # what a switched off step would have done
    for knob in knobs:
        if before.get(knob) != now.get(knob):
            yield knob, (_shown(before.get(knob)), _shown(now.get(knob)))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else canonical_json(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
