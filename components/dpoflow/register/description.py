"""The page that a reviewer reads in MLflow: a version's description, in Markdown.

Reads   the decision, who signed it, the chain of evidence, where MLflow has the files
Gives   `describe`; `Places`; `REPORTS`; `ancestors`
Not     what the gate makes of the answer (registry/gate)

What comes from a spec or a judge is escaped with HTML entities, which no Markdown reads as markup.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from dpoflow.contracts.results import Decision
from dpoflow.registry.lineage import Evidence

_HELD = {True: "held", False: "**not held**", None: "**not measured**"}
_MARKUP = re.compile(r"[&<>|*_\[\]\\`#~]")
HOW_TO = (
    "**To decide:** open *Tags* on this page and add `approval` = `approve: REASON` or "
    "`reject: REASON`. That takes the role reviewer, and nobody judges a run of their own."
)
REJECT_ONLY = (
    "**To decide:** a verdict of {verdict} cannot be approved. To say why it ends here, open "
    "*Tags* and add `approval` = `reject: REASON`."
)
NOBODYS = (
    "**To decide:** this version names no submission, so on a server with the approval gate nobody "
    "can approve it; run its spec against that server (`MLFLOW_TRACKING_URI`)."
)

REPORTS = {
    "report.html": "the evaluation, answers side by side",
    "merge.html": "the pairs it learnt from",
    "validate.html": "the data as it came",
}
"""Pages that open in MLflow's viewer, and what each shows."""


@dataclass(frozen=True)
class Places:
    """Where MLflow has what a reviewer wants to open."""

    experiment_id: str
    model_id: str
    run_id: str | None
    """Of the whole pipeline; None where nobody said."""
    reports: frozenset[str]
    """Those of `REPORTS` that lie among the files of the version."""


def describe(
    document: Decision, signer: str | None, chain: Evidence, places: Places, *, submitted: bool
) -> str:
    """The page."""
    return "\n\n".join(
        (
            f"**{document.verdict}**: {plain(document.sentence)}",
            _how_to(document, submitted=submitted),
            *_own_gates(document),
            _gates(document),
            _reports(places),
            _lineage(chain),
            f"Signed by `{signer}`." if signer else "**Unsigned**: nobody vouches for this.",
        )
    )


def plain(text: str) -> str:
    """Somebody's text on one line, and nothing but text."""
    one_line = " ".join(text.split())
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line)


def _how_to(document: Decision, *, submitted: bool) -> str:
    if not submitted:
        return NOBODYS
    if document.verdict != "promote":
        return REJECT_ONLY.format(verdict=document.verdict)
    return HOW_TO


def _own_gates(document: Decision) -> Iterator[str]:
    if document.own_gates:
        told = (
            f"`{name}` is {plain(here)}, usually {plain(usual)}"
            for name, (usual, here) in document.own_gates.items()
        )
        yield f"**Gates that this spec sets otherwise:** {'; '.join(told)}."


def _gates(document: Decision) -> str:
    rows = [
        _row(plain(gate.name), plain(gate.asked), plain(gate.seen), _HELD[gate.passed])
        for gate in document.gates
    ]
    return "\n".join(["| gate | asked | seen | |", "|---|---|---|---|", *rows])


def _reports(places: Places) -> str:
    here = f"#/experiments/{places.experiment_id}"
    files = f"{here}/models/{places.model_id}/artifacts"
    named = [f"`{name}` ({told})" for name, told in REPORTS.items() if name in places.reports]
    first = f", above all {', '.join(named)}" if named else ""
    links = [f"[the files of this version]({files}){first}"]
    if places.run_id:
        links.append(f"[the run that made it]({here}/runs/{places.run_id})")
    return f"**To read:** {'; '.join(links)}."


def _lineage(chain: Evidence) -> str:
    rows = [_row(plain(kind), f"`{digest}`") for kind, digest in ancestors(chain)]
    return "\n".join(["| rests on | sha256 |", "|---|---|", *rows])


def _row(*cells: str) -> str:
    """MLflow's page puts nothing between the columns, so a space is part of the cell."""
    return f"| {' | '.join(f'{cell}&emsp;' for cell in cells)} |"


def ancestors(chain: Evidence) -> Iterator[tuple[str, str]]:
    """Kind and digest of each artifact, from the roots to the sources."""
    seen, waiting = set[str](), list(chain.roots.values())
    while waiting:
        digest = waiting.pop(0)
        if digest not in seen:
            seen.add(digest)
            yield chain.manifests[digest].kind, digest
            waiting.extend(chain.manifests[digest].parents.values())
