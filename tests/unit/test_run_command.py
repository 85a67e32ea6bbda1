"""What `dpoflow run` and `dpoflow status` tell a person, before a run and after it."""

import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from tests.e2e.job import SPEC, SmallJob
from tests.tiny import tiny_folder
from typer.testing import CliRunner

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.results import RunSummary
from dpoflow.contracts.spec_file import load_spec
from dpoflow.state import files
from dpoflow.state.step import TaskRecord
from dpoflow_pipelines.cli import app
from dpoflow_pipelines.show import show_files, show_verdict

NOBODY = "http://127.0.0.1:9/v1"
"""Port 9 discards: nobody listens."""


@pytest.fixture
def job(tmp_path: Path) -> SmallJob:
    tiny_folder(tmp_path / "model")
    return SmallJob.write(tmp_path)


def judged_by_a_server(job: SmallJob) -> None:
    endpoint = {"base_url": NOBODY, "model": "the-judge", "api_key_env": "JUDGE_KEY"}
    spec = YAML(typ="safe").load(SPEC)
    spec["synthesize"]["judge"] = spec["evaluate"]["judge"] = {"kind": "llm", "endpoint": endpoint}
    Path(job.spec).write_text(json.dumps(spec))  # JSON is YAML


def told(*words: str) -> str:
    ended = CliRunner().invoke(app, [*words], env={"COLUMNS": "500"})
    assert ended.exit_code == 0, (ended.output, ended.exception)
    return ended.stdout


def test_a_dry_run_tells_people_in_words_and_programs_in_json(job: SmallJob) -> None:
    words = told("run", job.spec, "--dry-run", "--set", "train.beta=0.3")
    whole = told("run", job.spec, "--dry-run", "--set", "train.beta=0.3", "--json")

    assert words.startswith("small: the spec is sound, and nothing was run\n")
    assert "beta 0.3" in words
    assert "candidates: 3 of policy; judged by rubric" in words
    assert "{" not in words
    spec = load_spec(Path(job.spec), ["train.beta=0.3"])
    assert json.loads(whole) == spec.model_dump(mode="json")


def test_a_dry_run_needs_no_key_and_a_run_does(
    job: SmallJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    judged_by_a_server(job)
    monkeypatch.delenv("JUDGE_KEY", raising=False)

    dry = told("run", job.spec, "--dry-run")
    ended = CliRunner().invoke(app, ["run", job.spec, "--home", str(tmp_path / "home")])
    monkeypatch.setenv("JUDGE_KEY", "sk-there")
    with_key = told("run", job.spec, "--dry-run")

    assert "warning: JUDGE_KEY is not set; the run will need it" in dry
    assert isinstance(ended.exception, ConfigError)
    assert "JUDGE_KEY is not set" in str(ended.exception)
    assert "JUDGE_KEY" not in with_key
    assert "the-judge: with the longest answers about" in with_key


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("id,question,type\n1,May I?,safe\n", "'prompt' is missing"),
        ("id,prompt,type\n1,May I?,safe\n2,May I?,safe\n", "asks what suite.csv:1 asks"),
        ("id,prompt,type\n", "suite.csv holds no rows"),
        (None, "suite.csv does not exist; name a file of the suite"),
    ],
)
def test_a_suite_that_evaluation_would_refuse_is_refused_before_anything_is_spent(
    job: SmallJob, rows: str | None, said: str
) -> None:
    suite = job.folder / "suite.csv"
    if rows is not None:
        suite.write_text(rows, encoding="utf-8")
    named = f"evaluate.suites=[{{name: safe, kind: xstest, uri: {suite}}}]"

    for dry in ([], ["--dry-run"]):
        refused = CliRunner().invoke(app, ["run", job.spec, "--set", named, *dry])
        assert isinstance(refused.exception, DataRejected if rows is not None else ConfigError)
        assert str(refused.exception).startswith("evaluate.suites[0] (safe): ")
        assert said in str(refused.exception)


def test_a_spec_without_a_judge_is_told_the_way_out(job: SmallJob) -> None:
    plain = told("run", job.spec, "--dry-run")
    without = told("run", job.spec, "--dry-run", "--set", "evaluate.judge=null")
    refused = CliRunner().invoke(app, ["run", job.spec, "--set", "synthesize.judge=null"])

    assert "warning" not in plain
    assert "the verdict cannot be promote; set evaluate.judge" in without
    assert "set synthesize.judge, such as {rubric: FILE.yaml}" in str(refused.exception)
    rubric = Path("pipelines/configs/rubrics/plain_answers.yaml").resolve()
    way_out = f"evaluate.judge={{rubric: {rubric}}}"
    assert "warning" not in told("run", job.spec, "--dry-run", "--set", way_out)


def test_json_without_a_dry_run_is_refused(job: SmallJob) -> None:
    refused = CliRunner().invoke(app, ["run", job.spec, "--json"])

    assert "--json goes with --dry-run" in str(refused.exception)


# ---------------------------------------------------------------- after a run


def ran(home: Path, *records: dict[str, Any], **memory: str) -> RunSummary:
    """A run that nobody is at work on any more, with these tasks."""
    folder = home / "runs" / "small-1"
    files.write_text(folder / "run.json", json.dumps(memory))
    for record in records:
        text = TaskRecord.model_validate({"started": time.time(), **record}).model_dump_json()
        files.write_text(folder / "tasks" / f"{record['name']}.json", text)
    return RunSummary(run_id="small-1", name="small", state="SUCCEEDED")


@pytest.mark.parametrize(
    "record",
    [
        {"state": "RUNNING"},
        {"state": "FAILED", "error_type": "ServiceUnavailable", "error": "stopped by SIGTERM"},
    ],
    ids=["killed", "sigterm"],
)
def test_a_task_that_was_stopped_is_said_to_go_on(tmp_path: Path, record: dict[str, Any]) -> None:
    ran(tmp_path, {"name": "train", **record}, state="FAILED", error="no more")

    shown = told("status", "--home", str(tmp_path))

    assert "STOPPED" in shown
    assert "the same command continues it" in shown
    assert "the same command continues the run" in shown


def test_a_task_that_failed_for_a_reason_is_not_said_to_go_on_by_itself(tmp_path: Path) -> None:
    ran(
        tmp_path,
        {"name": "train", "state": "FAILED", "error_type": "DataRejected", "error": "no rows"},
        state="FAILED",
        error="train: no rows",
    )

    shown = told("status", "--home", str(tmp_path))

    assert "FAILED" in shown
    assert "DataRejected" in shown
    assert "STOPPED" not in shown
    assert "once that is mended the same command continues the run" in shown


def artifact(home: Path, digest: str, **pages: str) -> dict[str, str]:
    folder = home / "state" / digest
    for name, text in pages.items():
        files.write_text(folder / name.replace("_", "."), text)
    files.write_text(home / "index" / digest, f"state/{digest}\n")
    return {"it": digest}


def test_long_answers_are_cut_and_the_pages_that_have_them_whole_are_named(tmp_path: Path) -> None:
    row = {"question": "Why?", "against": "base", "theirs": "Short."}
    row["candidate"] = "on and on " * 900
    outputs = artifact(
        tmp_path, "d1", report_html="<p>", decision_json="{}", answers_jsonl=json.dumps(row)
    )
    summary = ran(
        tmp_path,
        {"name": "evaluate", "state": "SUCCEEDED", "outputs": {"decision": outputs["it"]}},
        {"name": "validate", "state": "SUCCEEDED", "outputs": artifact(tmp_path, "d2", a_html="")},
    )
    gates = {"verdict": "reject", "sentence": "No.", "gates": []}
    gate = {"name": "win_rate", "asked": "more", "seen": "less", "passed": False}
    seen = summary.model_copy(update={"evaluation": gates | {"gates": [gate]}})
    console = Console(file=io.StringIO(), width=60)

    show_verdict(console, tmp_path, seen)
    show_files(console, tmp_path, seen)

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("on and on") < 40
    assert "…" in shown
    assert "Short." in shown
    assert f"evaluate page: {tmp_path}/state/d1/report.html\n" in shown
    assert f"validate page: {tmp_path}/state/d2/a.html\n" in shown
