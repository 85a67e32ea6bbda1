"""The register step: a model version with its evidence, always; the alias only on promote.

Reads   the candidate (train) and its decision (evaluate)
Gives   a version in MLflow, and evidence.json: the manifests from the version back to the sources
Not     approving or promoting: that is the reviewer's
"""

from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.results import Decision, RegisterResult
from dpoflow.contracts.spec import RegistryConfig
from dpoflow.registry.lineage import ancestry
from dpoflow.registry.versions import CHALLENGER, evidence_tag, record_version
from dpoflow.state.files import write_text
from dpoflow.state.step import StepState

_HELD = {True: "held", False: "**not held**", None: "**not measured**"}


def run(
    config: RegistryConfig, *, policy: Path, decision: Path, evidence: Path, state: StepState
) -> RegisterResult:
    """Record the version once, however often this is killed and run again."""
    document = Decision.model_validate_json((decision / "decision.json").read_text("utf-8"))
    policy_digest = manifest.read(policy).digest
    decision_digest = manifest.read(decision).digest
    chain = ancestry(state.root, {"policy": policy_digest, "decision": decision_digest})
    write_text(evidence / "evidence.json", chain.model_dump_json(indent=2) + "\n")
    state.events.say(f"recording {config.model}")
    recorded = record_version(
        config.model,
        policy,
        reports=[decision / "decision.json", decision / "answers.html", evidence / "evidence.json"],
        alias=CHALLENGER if document.verdict == "promote" else None,
        description=_description(document),
        tags={
            "dpoflow.evidence": evidence_tag(policy_digest, decision_digest),
            "dpoflow.policy_digest": policy_digest,
            "dpoflow.decision_digest": decision_digest,
            "dpoflow.verdict": document.verdict,
        },
        memory=state.work / "logged_model.json",
    )
    state.events.say(f"{config.model} version {recorded.version}, alias {recorded.alias or 'none'}")
    return recorded


def _description(document: Decision) -> str:
    rows = "\n".join(
        f"| {gate.name} | {gate.asked} | {gate.seen} | {_HELD[gate.passed]} |"
        for gate in document.gates
    )
    return (
        f"**{document.verdict}**: {document.sentence}\n\n"
        f"| gate | asked | seen | |\n|---|---|---|---|\n{rows}\n"
    )
