"""What register refuses before it asks MLflow for anything."""

from pathlib import Path

import pytest

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.results import Decision
from dpoflow.contracts.spec import RegistryConfig
from dpoflow.register.step import run
from dpoflow.state.step import StepState


def sealed(folder: Path, name: str, text: str) -> Path:
    folder.mkdir()
    (folder / name).write_text(text)
    manifest.seal(folder, "test", parents={}, config={}, code="")
    return folder


def register(folder: Path, config: RegistryConfig, digest: str) -> None:
    decision = Decision(
        verdict="promote",
        sentence="It won.",
        gates=(),
        against={},
        measures={},
        digests={"policy": digest},
    )
    run(
        config,
        policy=folder / "policy",
        decision=sealed(folder / "decision", "decision.json", decision.model_dump_json()),
        evidence=folder / "evidence",
        state=StepState(folder / "state" / "x", "register"),
    )


def test_a_decision_on_another_policy_is_refused(tmp_path: Path) -> None:
    sealed(tmp_path / "policy", "model.safetensors", "weights")

    with pytest.raises(DataRejected, match=r"the decision is on 000000000000…, and the policy is"):
        register(tmp_path, RegistryConfig(model="m"), "0" * 64)


def test_a_decision_that_nobody_signed_is_refused_where_somebody_must(tmp_path: Path) -> None:
    policy = sealed(tmp_path / "policy", "model.safetensors", "weights")
    digest = manifest.read(policy).digest

    with pytest.raises(DataRejected, match=r"signed by nobody, and registry\.signer asks for 1111"):
        register(tmp_path, RegistryConfig(model="m", signer="1" * 64), digest)
