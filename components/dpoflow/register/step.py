"""The register step: a model version with its evidence, always; the alias only on promote.

Reads   the candidate (train) and its decision (evaluate); DPOFLOW_SUBMISSION, where a team's server
        was told whose run this is
Gives   a version in MLflow with its reports, and evidence.json: the manifests from the version
        back to the sources
Not     approving or promoting: that is the reviewer's
"""

import os
from pathlib import Path

from dpoflow.contracts import manifest
from dpoflow.contracts.errors import DataRejected
from dpoflow.contracts.results import Decision, RegisterResult
from dpoflow.contracts.spec import RegistryConfig
from dpoflow.register.description import REPORTS, Places, ancestors, describe
from dpoflow.registry.lineage import Evidence, ancestry
from dpoflow.registry.signature import DECISION, SIGNATURE, signer_of
from dpoflow.registry.submission import QUOTED, TAG
from dpoflow.registry.versions import CHALLENGER, evidence_tag, record_version
from dpoflow.state.files import write_text
from dpoflow.state.step import StepState, find
from dpoflow.state.surroundings import PARENT


def run(
    config: RegistryConfig, *, policy: Path, decision: Path, evidence: Path, state: StepState
) -> RegisterResult:
    """Record the version once, however often this is killed and run again."""
    signer = _signer(config, decision)
    document = Decision.model_validate_json((decision / DECISION).read_text("utf-8"))
    policy_digest = manifest.read(policy).digest
    if document.digests.get("policy") != policy_digest:
        raise DataRejected(
            f"the decision is on {document.digests.get('policy', 'no policy')[:12]}…, and the "
            f"policy is {policy_digest[:12]}…; evaluate this one"
        )
    decision_digest = manifest.read(decision).digest
    chain = ancestry(state.root, {"policy": policy_digest, "decision": decision_digest})
    write_text(evidence / "evidence.json", chain.model_dump_json(indent=2) + "\n")
    reports = {
        **{name: decision / name for name in (DECISION, SIGNATURE, "report.html")},
        **_pages_on_data(state.root, chain),
        "evidence.json": evidence / "evidence.json",
    }
    reports = {name: path for name, path in reports.items() if path.exists()}
    submission = os.environ.get(QUOTED) or None
    state.events.say(f"recording {config.model}")
    recorded = record_version(
        config.model,
        policy,
        reports=reports,
        alias=CHALLENGER if document.verdict == "promote" else None,
        description=lambda experiment_id, model_id: describe(
            document,
            signer,
            chain,
            Places(
                experiment_id,
                model_id,
                os.environ.get(PARENT) or None,
                frozenset(REPORTS.keys() & reports.keys()),
            ),
            submitted=submission is not None,
        ),
        tags={
            "dpoflow.evidence": evidence_tag(policy_digest, decision_digest),
            "dpoflow.policy_digest": policy_digest,
            "dpoflow.decision_digest": decision_digest,
            "dpoflow.verdict": document.verdict,
            "dpoflow.signer": signer or "nobody",
            **({TAG: submission} if submission else {}),
        },
        memory=state.work / "logged_model.json",
    )
    state.events.say(f"{config.model} version {recorded.version}, alias {recorded.alias or 'none'}")
    return recorded


def _pages_on_data(root: Path, chain: Evidence) -> dict[str, Path]:
    """The reports that validate and merge wrote beside what the version rests on.

    They go with the version, where nobody changes them any more, as those of the runs could be.
    """
    pages = {}
    for kind, digest in ancestors(chain):
        step, _, _ = kind.partition(".")
        folder = find(root, digest) if f"{step}.html" in REPORTS else None
        if folder is not None:
            pages[f"{step}.html"] = folder.parent / "report" / "report.html"
    return pages


def _signer(config: RegistryConfig, decision: Path) -> str | None:
    """Who vouches for the decision. DataRejected where the spec asks for somebody else."""
    signer = signer_of(decision)
    if config.signer not in (None, signer):
        raise DataRejected(
            f"the decision is signed by {signer or 'nobody'}, and registry.signer asks for "
            f"{config.signer}; evaluate with that key"
        )
    return signer
