"""The main job from a spec to a registered version, by the command, everything real but small."""

import json
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.e2e.job import SmallJob, policy_weights, summary
from tests.tiny import tiny_folder
from tests.waiting import AT_MOST_S

from dpoflow.contracts.manifest import sha256_file

SIGNER = Ed25519PrivateKey.generate()
PUBLIC = SIGNER.public_key().public_bytes_raw().hex()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    """One whose decisions are signed."""
    folder = tmp_path_factory.mktemp("job")
    tiny_folder(folder / "model")
    key = SIGNER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "key.pem").write_bytes(key)
    written = SmallJob.write(folder)
    with Path(written.spec).open("a") as spec:
        spec.write(f"  signer: {PUBLIC}\n")  # of its last section: evaluate
    return replace(written, environment={"DPOFLOW_SIGNING_KEY": str(folder / "key.pem")})


@pytest.fixture(scope="module")
def home(job: SmallJob, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home in which the job ran once, uninterrupted."""
    home = tmp_path_factory.mktemp("home")
    ended = job.run(home)
    assert ended.code == 0, ended.out + ended.err
    return home


def folder_of(home: Path, digest: str) -> Path:
    return home / (home / "index" / digest).read_text("utf-8").strip()


def test_every_task_ran_and_the_summary_says_so(home: Path) -> None:
    told = summary(home)

    assert told["state"] == "SUCCEEDED"
    names = [
        "snapshot",
        "validate",
        "synthesize",
        "merge",
        "train",
        "evaluate",
        "register",
        "conclude",
    ]
    assert [task["name"] for task in told["tasks"]] == names
    assert {task["state"] for task in told["tasks"]} == {"SUCCEEDED"}
    assert set(told["evaluation"]) >= {"win_rate", "ci", "verdict"}
    assert set(told["registry"]) >= {"model", "version", "alias", "digest"}
    assert set(told["mlflow"]) == {"tracking_uri", "run_id"}


def test_rows_balance_from_the_files_to_training(home: Path) -> None:
    data = summary(home)["data"]

    for step in ("validate", "merge"):
        counts = data[step]["counts"]
        assert counts["num_in"] == counts["num_kept"] + sum(counts["quarantined"].values())
    assert data["validate"]["counts"]["num_in"] == 48
    made = data["synthesize"]
    assert made["num_prompts"] == made["num_pairs"] + sum(made["not_pairs"].values())


def test_training_begins_at_ln_2(home: Path) -> None:
    assert summary(home)["train"]["first_loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_the_policy_loads_plainly_and_keeps_its_chat_template(home: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_of(home, summary(home)["train"]["policy_digest"])

    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert not [
        path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".pth"}
    ]


def test_mlflow_holds_the_parent_its_children_and_the_version(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    told = summary(home)
    client = MlflowClient(told["mlflow"]["tracking_uri"])
    parent = client.get_run(told["mlflow"]["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )

    assert parent.info.status == "FINISHED"
    names = {"snapshot", "validate", "synthesize", "merge", "train", "evaluate", "register"}
    assert {run.data.tags["dpoflow.step"] for run in children} == names
    assert {run.info.status for run in children} == {"FINISHED"}
    train = next(run for run in children if run.data.tags["dpoflow.step"] == "train")
    assert float(train.data.params["beta"]) == 0.1
    losses = client.get_metric_history(train.info.run_id, "train/loss")
    assert len(losses) == told["train"]["num_steps"]
    assert losses[0].value == pytest.approx(math.log(2), abs=1e-3)
    evaluated = next(run for run in children if run.data.tags["dpoflow.step"] == "evaluate")
    assert evaluated.data.metrics["eval/win_rate"] == told["evaluation"]["win_rate"]
    assert evaluated.data.metrics["eval/win_rate_low"] == told["evaluation"]["ci"][0]
    table = json.loads(evaluated.data.tags["mlflow.loggedArtifacts"])[0]["path"]
    assert table in {each.path for each in client.list_artifacts(evaluated.info.run_id, "decision")}
    data = {each.dataset.name: each for each in train.inputs.dataset_inputs}
    merged = folder_of(home, {tag.key: tag.value for tag in data["pairs"].tags}["sha256"])
    assert (merged / "train.parquet").exists()

    registry = told["registry"]
    version = client.get_model_version(registry["model"], str(registry["version"]))
    assert version.tags["dpoflow.policy_digest"] == told["train"]["policy_digest"]
    assert version.tags["dpoflow.signer"] == PUBLIC
    assert version.run_id in {run.info.run_id for run in children}
    aliases = client.get_registered_model(registry["model"]).aliases
    assert aliases == ({"challenger": "1"} if told["evaluation"]["verdict"] == "promote" else {})


def test_the_same_command_again_computes_nothing_and_makes_no_second_version(
    job: SmallJob, home: Path
) -> None:
    before = summary(home)

    ended = job.call("run", job.spec, "--home", str(home), "--require", "promote")

    after = summary(home)
    assert ended.code == (0 if before["evaluation"]["verdict"] == "promote" else 4)
    reused = {task["name"] for task in after["tasks"] if task["reused"]}
    assert reused == {"validate", "synthesize", "merge", "train", "evaluate"}
    assert after["run_id"] != before["run_id"]
    assert after["registry"] == before["registry"]


@pytest.mark.full
def test_require_promote_exits_4_when_the_verdict_is_another(job: SmallJob, home: Path) -> None:
    ended = job.call("run", job.spec, "--home", str(home), "--require", "promote", "--set",
                     "evaluate.gates.min_prompts=10000")  # fmt: skip

    assert ended.code == 4
    assert "the verdict is inconclusive, not promote" in ended.err
    assert summary(home)["state"] == "SUCCEEDED"


def test_the_key_that_signed_is_nowhere_in_the_home(job: SmallJob, home: Path) -> None:
    secret = (job.folder / "key.pem").read_bytes().splitlines()[1]

    files = [path for path in home.rglob("*") if path.is_file()]
    assert [path for path in files if secret in path.read_bytes()] == []


def test_a_trace_walks_to_the_sources_and_finds_one_changed_byte(
    job: SmallJob, home: Path, tmp_path: Path
) -> None:
    version = f"small/{summary(home)['registry']['version']}"
    whole = job.call("trace", version, "--home", str(home))

    assert whole.code == 0, whole.err
    for kind in ("train.policy", "evaluate.decision", "merge.training", "synthesize.pairs",
                 "validate.pairs", "snapshot.data", "snapshot.model"):  # fmt: skip
        assert kind in whole.out
    assert "pairs.jsonl" in whole.out

    folder = home / "content" / summary(home)["data"]["digest"]
    victim = next(path for path in sorted((folder / "files").iterdir()))
    kept = victim.read_bytes()
    victim.write_bytes(kept[:-2] + b"X\n")
    try:
        changed = job.call("trace", version, "--home", str(home))
    finally:
        victim.write_bytes(kept)
    assert changed.code == 3
    assert "was changed" in changed.err


def test_a_trace_follows_one_pair_to_its_row(job: SmallJob, home: Path) -> None:
    from dpoflow.contracts.pairs import PreferencePair, read_parquet

    train = folder_of(home, summary(home)["train"]["policy_digest"])
    parents = json.loads((train / "manifest.json").read_text())["parents"]
    pair = next(
        iter(read_parquet(folder_of(home, parents["pairs"]) / "train.parquet", PreferencePair))
    )

    ended = job.call("trace", "small/1", "--home", str(home), "--pair", pair.pair_id[:12])

    assert ended.code == 0
    assert pair.source.row in ended.out


@pytest.mark.full
@pytest.mark.parametrize(
    ("task", "phase", "done"),
    [("synthesize", "sampling", 8), ("train", "training", 5), ("register", "", 0)],
)
def test_a_run_killed_in_the_middle_goes_on_to_the_same_parameters_and_one_version(
    job: SmallJob, home: Path, tmp_path: Path, task: str, phase: str, done: int
) -> None:
    job.run_and_kill(tmp_path, task, phase=phase, done=done)
    assert "CUT OFF" in job.call("status", "--home", str(tmp_path)).out

    ended = job.run(tmp_path)

    assert ended.code == 0, ended.out + ended.err
    assert "continuing" in ended.out
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert summary(tmp_path)["registry"]["version"] == 1
    assert policy_weights(tmp_path) == policy_weights(home)
    from mlflow import MlflowClient

    client = MlflowClient(summary(tmp_path)["mlflow"]["tracking_uri"])
    assert len(client.search_model_versions("name = 'small'")) == 1


def test_sigterm_ends_a_run_at_once_with_its_summary_and_its_tasks(
    job: SmallJob, tmp_path: Path
) -> None:
    process = job.start("run", job.spec, "--home", str(tmp_path))
    job.wait_for(process, tmp_path, "snapshot")
    process.terminate()
    _, err = process.communicate(timeout=AT_MOST_S)

    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in err
    assert summary(tmp_path)["state"] == "FAILED"


def test_a_run_that_somebody_else_opened_is_attached_to_and_never_ended(
    job: SmallJob, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from dpoflow.tracking.pipeline_run import close_run, open_run

    uri = summary(home)["mlflow"]["tracking_uri"]
    client = MlflowClient(uri)
    place = (tmp_path / "theirs").as_uri()
    theirs = client.create_run(client.create_experiment("theirs", place)).info.run_id
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)

    opened = open_run(home, experiment="small", run_name="r", spec_json="{}", known=None)
    close_run(opened, "SUCCEEDED", "{}")

    assert opened.run_id == theirs
    assert client.get_run(theirs).info.status == "RUNNING"


# ------------------------- other specs in the same home: after what looks at the latest run there


@pytest.mark.full
def test_a_version_is_trained_further_on_new_pairs_with_old_ones_mixed_in(
    job: SmallJob, home: Path
) -> None:
    first = summary(home)
    new = job.folder / "new.jsonl"
    answers = ("We will look into it at once and write to you.", "Wait, it is a holiday here!")
    with new.open("w") as out:
        for number in range(12):
            row = {"prompt": f"Order {number}?", "chosen": answers[0], "rejected": answers[1]}
            out.write(json.dumps(row) + "\n")

    ended = job.run(
        home,
        f"data.sources=[{{uri: {new}}}]",
        "data.replay=[{uri: models:/small/1}]",
        "data.replay_per_new=0.5",
        "synthesize.enabled=false",
        "train.init=models:/small/1",
        "train.reference=base",
        "train.max_tokens=200",
    )

    assert ended.code == 0, ended.out + ended.err
    told = summary(home)
    policy = folder_of(home, told["train"]["policy_digest"])
    parents = json.loads((policy / "manifest.json").read_text())["parents"]
    assert parents["reference"] == first["data"]["model_digest"]
    assert parents["init"] != parents["reference"]
    init, version = folder_of(home, parents["init"]), first["train"]["policy_digest"]
    weights = sha256_file(folder_of(home, version) / "model.safetensors")
    assert sha256_file(init / "model.safetensors") == weights
    assert told["train"]["first_loss"] != pytest.approx(math.log(2), abs=1e-3)
    assert told["data"]["validate"]["num_pairs"] > 8
    from dpoflow.contracts.pairs import PreferencePair, read_parquet

    pairs = read_parquet(folder_of(home, parents["pairs"]) / "train.parquet", PreferencePair)
    datasets = {pair.source.dataset for pair in pairs}  # an old pair still says whence it came
    assert {"new.jsonl", "pairs.jsonl"} <= datasets


@pytest.mark.full
def test_a_new_candidate_is_held_against_the_champion_that_was_asked_before(
    job: SmallJob, home: Path
) -> None:
    from mlflow import MlflowClient

    from dpoflow.state.events import read_events

    client = MlflowClient(summary(home)["mlflow"]["tracking_uri"])
    client.set_registered_model_alias("small", "champion", "1")

    ended = job.run(home, "train.beta=0.2", "train.max_tokens=254")

    assert ended.code == 0, ended.out + ended.err
    run = home / "runs" / summary(home)["run_id"]
    task = json.loads((run / "tasks" / "evaluate.json").read_text())
    decision = folder_of(home, task["outputs"]["decision"]) / "decision.json"
    found = json.loads(decision.read_text())
    assert list(found["against"]) == ["base", "champion"]
    assert found["changed"]["beta"] == ["0.1", "0.2"]
    assert "with the champion" in found["sentence"]
    events, _ = read_events(Path(task["state_dir"]) / "events.jsonl")
    made = {event.phase for event in events if event.done and event.unit == "answers"}
    assert made == {"candidate answers"}
    client.delete_registered_model_alias("small", "champion")


@pytest.mark.full
def test_a_sweep_is_one_run_that_asks_the_reference_once(
    job: SmallJob, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from dpoflow.state.events import read_events

    versions = summary(home)["registry"]["version"]
    ended = job.call("run", job.spec, "--home", str(home), "--set", "train.epochs=1",
                     "--set", "train.max_tokens=255", "--grid", "train.beta=0.05,0.3",
                     "--grid", "train.loss=sigmoid,hinge")  # fmt: skip

    assert ended.code == 0, ended.out + ended.err
    told = summary(home)
    assert len(told["points"]) == 4
    assert told["points"][2]["sets"] == ["train.beta=0.3", "train.loss=sigmoid"]
    assert {point["evaluation"]["verdict"] for point in told["points"]} <= {
        "promote", "reject", "inconclusive"}  # fmt: skip
    digests = {point["train"]["policy_digest"] for point in told["points"]}
    assert len(digests) == 4
    names = [task["name"] for task in told["tasks"]]
    assert [name for name in names if name.startswith("train")] == [
        "train", "train-2", "train-3", "train-4"]  # fmt: skip
    asked = 0
    for path in (home / "runs" / told["run_id"] / "tasks").glob("train*.json"):
        folder = Path(json.loads(path.read_text())["state_dir"])
        events, _ = read_events(folder / "events.jsonl")
        asked += any(event.phase == "reference" and event.done for event in events)
    assert asked <= 1
    client = MlflowClient(told["mlflow"]["tracking_uri"])
    parent = client.get_run(told["mlflow"]["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    betas = sorted(
        (run.data.params["beta"], run.data.params["loss"])
        for run in children
        if run.data.tags["dpoflow.step"] == "train"
    )
    assert betas == sorted(
        (beta, loss) for beta in ("0.05", "0.3") for loss in ("sigmoid", "hinge")
    )
    assert "--set train.max_tokens=255 --set train.beta=0.05 --set train.loss=sigmoid" in ended.out
    assert told["registry"] is None
    assert versions

    again = job.run(home, "train.epochs=1", "train.max_tokens=255", "train.beta=0.05",
                    "train.loss=sigmoid")  # fmt: skip

    assert again.code == 0, again.out + again.err
    reused = {task["name"] for task in summary(home)["tasks"] if task["reused"]}
    assert {"train", "evaluate"} <= reused  # what the sweep printed goes on with that point


@pytest.mark.full
def test_a_champion_that_is_not_there_yet_is_the_configs_fault(job: SmallJob, home: Path) -> None:
    ended = job.run(home, "train.init=champion")

    assert ended.code == 2
    assert "no version small@champion in MLflow" in ended.err
    assert "such as base" in ended.err
