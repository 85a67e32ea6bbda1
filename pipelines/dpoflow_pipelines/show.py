"""What a person sees of runs, verdicts and chains of evidence.

Reads   summaries, decisions, manifests
Gives   `show_summary`, `show_figures`, `show_cost`, `show_files`, `show_verdict`, `show_decision`,
        `show_status`, `show_trace`, `show_pulled`
Not     live progress (progress.py)
"""

import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.pairs import PreferencePair, read_parquet
from dpoflow.contracts.results import RegisterResult, RunSummary, TaskCost
from dpoflow.sources.pinned import read_pinned
from dpoflow.state.step import find, read_records
from dpoflow_pipelines.backends.laptop import not_to_run, task_names
from dpoflow_pipelines.progress import settled, task_table
from dpoflow_pipelines.runs import IR, find_run, is_held, memory

if TYPE_CHECKING:
    from dpoflow.registry.pull import Pulled

_EXAMPLES = 5
_SHOWN = 240
"""Characters of a text of somebody's: a few lines."""


def _summary(folder: Path) -> RunSummary | None:
    try:
        return RunSummary.model_validate_json((folder / "summary.json").read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def show_summary(console: Console, summary: RunSummary, home: Path) -> None:
    """The verdict, unselected answers, and what a reviewer does next."""
    show_decision(console, summary)
    show_verdict(console, home, summary)
    if summary.registry and summary.mlflow:
        version = summary.registry
        _show_version(console, version)
        place = summary.mlflow.tracking_uri
        console.print("\nnext, for a reviewer:", style="bold")
        lines = [
            f"  mlflow server --backend-store-uri {shlex.quote(place)} --port 5000"
            if place.startswith("sqlite")
            else f"  open {place}",
            f"  → Model registry → {version.model}, version {version.version}: gates, report.html",
            f"  dpoflow trace {version.model}/{version.version} --home {shlex.quote(_short(home))}",
        ]
        if memory(home / "runs" / summary.run_id).get("submission"):
            approved = "approve: REASON, or " * (summary.evaluation.get("verdict") == "promote")
            lines.insert(2, f"  → Tags → approval = {approved}reject: REASON")
        console.print("\n".join(lines), markup=False, highlight=False)
    show_cost(console, summary)
    show_files(console, home, summary)


def show_figures(console: Console, summary: RunSummary) -> None:
    """What is known of a run whose artifacts are elsewhere."""
    show_decision(console, summary)
    _show_gates(console, summary)
    if summary.registry:
        _show_version(console, summary.registry)
    show_cost(console, summary)


def _show_version(console: Console, version: RegisterResult) -> None:
    console.print(f"\nrecorded [bold]{version.model}/{version.version}[/]", end="")
    console.print(f", alias {version.alias}" if version.alias else ", no alias")


def show_cost(console: Console, summary: RunSummary) -> None:
    """What the run took, where it took a GPU or money; and what it found done."""
    cost = summary.cost
    if cost is None:
        return
    if cost.by_task:
        _print_cost(console, "cost", cost.by_task)
    if cost.reused:
        _print_cost(console, "spent by earlier runs, and not again", cost.reused)


def _print_cost(console: Console, what: str, by_task: Mapping[str, TaskCost]) -> None:
    told = "; ".join(f"{task} {_took(cost)}" for task, cost in by_task.items())
    every = TaskCost(
        gpu_hours=sum(cost.gpu_hours for cost in by_task.values()),
        money=sum(cost.money for cost in by_task.values()),
        requests=sum(cost.requests for cost in by_task.values()),
    )
    console.print(f"{what}: {_took(every)} ({told})", markup=False, highlight=False)


def _took(cost: TaskCost) -> str:
    hours = f"{cost.gpu_hours:.3g} GPU hours" if cost.gpu_hours else ""
    asked = f"{cost.requests:,} requests, {cost.money:,.2f} paid" if cost.requests else ""
    return ", ".join(filter(None, (hours, asked)))


def show_decision(console: Console, summary: RunSummary | None) -> None:
    """Of a retraining: whether there was something to learn, and why."""
    if summary is None or summary.retrain is None:
        return
    word = {"train": "trained", "skip": "nothing to learn"}[summary.retrain.decision]
    if summary.state != "SUCCEEDED" and summary.retrain.decision == "train":
        word = "something to learn"
    console.print(f"[bold]{word}:[/] {_safe(summary.retrain.sentence)}", highlight=False)


def show_files(console: Console, home: Path, summary: RunSummary) -> None:
    """Where the pages for people and the facts for programs lie."""
    console.print()
    records = read_records(home / "runs" / summary.run_id)
    for name, record in sorted(records.items(), key=lambda item: item[1].started):
        folders = (find(home, digest) for digest in record.outputs.values())
        for page in sorted(path for each in folders if each for path in each.glob("*.html")):
            _print_path(console, f"{name} page", page)
    _print_path(console, "summary", home / "summary.json")


def _print_path(console: Console, what: str, path: Path) -> None:
    # Not wrapped: a path that is cut in two cannot be clicked or copied.
    console.print(f"{what}: {_short(path)}", markup=False, highlight=False, soft_wrap=True)


def show_verdict(console: Console, home: Path, summary: RunSummary | None = None) -> None:
    """The first few comparisons in the order of their ids, then the gates as a table."""
    summary = summary or _summary(home)
    if summary is None or not summary.evaluation.get("gates"):
        return
    _show_answers(console, home, summary)
    _show_gates(console, summary)


def _show_gates(console: Console, summary: RunSummary) -> None:
    if not summary.evaluation.get("gates"):
        return
    colour = {"promote": "green", "reject": "red"}.get(str(summary.evaluation["verdict"]), "yellow")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("gate", "asked", "seen", ""):
        table.add_column(column)
    gates = summary.evaluation["gates"]
    assert isinstance(gates, list)
    for gate in gates:
        word = {True: "[green]held[/]", False: "[red]not held[/]", None: "[yellow]not measured[/]"}
        table.add_row(gate["name"], gate["asked"], gate["seen"], word[gate["passed"]])
    console.print()
    console.print(table)
    console.print(f"\n[bold {colour}]{summary.evaluation['verdict']}[/]: ", end="")
    console.print(escape(str(summary.evaluation["sentence"])), highlight=False)


def _show_answers(console: Console, home: Path, summary: RunSummary) -> None:
    record = read_records(home / "runs" / summary.run_id).get("evaluate")
    folder = find(home, record.outputs["decision"]) if record and record.outputs else None
    if folder is None:
        return
    with (folder / "answers.jsonl").open(encoding="utf-8") as lines:
        for line, _ in zip(lines, range(_EXAMPLES), strict=False):
            row = json.loads(line)
            console.print(f"\n[bold]{_excerpt(row['question'])}[/]", highlight=False)
            for who, answer in ((row["against"], row["theirs"]), ("candidate", row["candidate"])):
                console.print(f"  [dim]{who:9}[/] {_excerpt(answer)}", highlight=False)


def _excerpt(text: str) -> str:
    """The start of an answer: some run to pages, and report.html has them whole."""
    line = " ".join(text.split())
    return _safe(line if len(line) <= _SHOWN else line[:_SHOWN].rsplit(" ", 1)[0] + " …")


def _safe(text: str) -> str:
    """One line of somebody's text: no markup of ours, no control characters for the terminal."""
    shown = "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
    return escape(shown)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def show_status(console: Console, home: Path, run_id: str | None) -> None:
    """The tasks of a run, and its summary's state."""
    folder = find_run(home, run_id)
    if memory(folder).get("backend") == "cluster":
        from dpoflow_pipelines.on_cluster import show_cluster_status

        show_cluster_status(console, folder)
        return
    records = read_records(folder)
    ir = folder / IR
    names = task_names(ir) if ir.exists() else list(records)
    summary, held = _summary(folder), is_held(folder)
    error = summary.error if summary else memory(folder).get("error")
    state = str(summary.state if summary else "FAILED" if error else "RUNNING")
    if state == "RUNNING" and not held:
        state = "CUT OFF (nobody is at work on it; the command that started it continues it)"
    if not held:
        records = settled(records)
    console.print(f"[bold]{folder.name}[/] {state}", highlight=False)
    skipped = not_to_run(ir, records) if ir.exists() else set[str]()
    console.print(task_table(names, records, skipped=skipped))
    show_decision(console, summary)
    if error:
        console.print(f"error: {error}", markup=False, highlight=False)
    if not held and state == "FAILED" and "the same command" not in (error or ""):
        console.print("once that is mended the same command continues the run", highlight=False)


def show_pulled(console: Console, pulled: "Pulled", *, as_json: bool) -> None:
    """What stands in the folder now."""
    if as_json:
        console.print_json(data=vars(pulled) | {"folder": str(pulled.folder)})
        return
    what = f"{pulled.model}/{pulled.version}"
    word = "was there already, unchanged" if pulled.was_there else "is there"
    console.print(_safe(f"{what} {word}: {_short(pulled.folder)}"), highlight=False)
    console.print(f"policy {pulled.policy_digest}", highlight=False)
    if pulled.champion:
        console.print("champion, by the audit log; every file hashed", highlight=False)
    elif pulled.was_promoted:
        console.print("champion once, and not now; every file hashed", highlight=False)
    else:
        console.print(
            "[yellow]never champion:[/] its files are those that were evaluated, and nobody says "
            "that it may be served",
            highlight=False,
        )


def show_trace(console: Console, home: Path, version: str, pair: str | None) -> None:
    """Walk from a version to its sources, hashing everything again."""
    from dpoflow.registry.lineage import walk
    from dpoflow.registry.versions import read_version
    from dpoflow.tracking.settings import local_uri

    name, slash, number = version.partition("/")
    if not slash or not number.isdigit():
        raise ConfigError(f"trace takes NAME/VERSION such as demo/1, got '{version}'")
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        if not (home / "mlflow.db").exists():
            raise ConfigError(f"no MLflow at {home}: name the run's home with --home")
        os.environ["MLFLOW_TRACKING_URI"] = local_uri(home)
    recorded = read_version(name, int(number))
    console.print(f"[bold]{name}/{number}[/] {', '.join(recorded.aliases) or 'no alias'}")
    for step, found, folder in walk(home, recorded.evidence):
        console.print(
            f"  {found.kind:22} {found.digest[:16]}"
            f"  files match: {len(found.files)} [dim]{step}[/]",
            highlight=False,
        )
        if found.kind == "snapshot.data":
            _show_sources(console, folder)
        if pair is not None and found.kind == "merge.training":
            _show_pair(console, folder, pair)
    console.print("[green]every file hashed again and found unchanged[/]")


def _show_sources(console: Console, folder: Path) -> None:
    for pinned in read_pinned(folder):
        what = f"{pinned.source}: {pinned.name}, {pinned.licence}, sha256 {pinned.sha256[:16]}"
        console.print(f"    {_safe(what)}", highlight=False)


def _show_pair(console: Console, folder: Path, wanted: str) -> None:
    rows = read_parquet(folder / "train.parquet", PreferencePair)
    found = [row for row in rows if row.pair_id.startswith(wanted)]
    if len(found) != 1:
        some = ", ".join(row.pair_id[:16] for row in found[:3])
        raise ConfigError(
            f"{len(found) or 'no'} training pairs begin with '{wanted}'"
            f"{f' ({some} …); give more of the id' if found else ''}; ids stand under pair_ids in "
            "training.json, beside the version's weights"
        )
    (row,) = found
    console.print(f"    pair {row.pair_id[:16]} from {row.source.dataset} {row.source.row}")
    console.print_json(row.model_dump_json(exclude_none=True))
