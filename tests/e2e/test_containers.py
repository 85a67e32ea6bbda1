"""Our images really built, and pipelines whose every task is a container of one of them."""

import fcntl
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from kfp import compiler, dsl
from tests import images
from tests.e2e.job import SmallJob, summary
from tests.seaweed import free_port
from tests.tiny import tiny_folder
from tests.waiting import AT_MOST_S, until

from dpoflow.contracts.errors import ConfigError, DpoflowError
from dpoflow.contracts.spec import DataConfig, SourceConfig, Spec
from dpoflow.images import CPU
from dpoflow.state.step import read_records
from dpoflow_pipelines.backends.containers import LABEL, in_containers
from dpoflow_pipelines.backends.laptop import TaskFailed

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(bool(images.why_not()), reason=images.why_not() or "none"),
]
SPEC = Spec(
    name="boxes", model="/none", data=DataConfig(sources=(SourceConfig(uri="/none.jsonl"),))
)


@dsl.component(base_image=CPU, install_kfp_package=False)
def count(root: str, numbers: dsl.Output[dsl.Artifact]) -> str:
    from pathlib import Path

    from dpoflow.state.step import begin

    task = begin("count")
    Path(numbers.path).write_text("1 2 3")
    return task.simply(lambda: "three")


@dsl.component(base_image=CPU, install_kfp_package=False)
def add(root: str, word: str, numbers: dsl.Input[dsl.Artifact]) -> str:
    import os
    from pathlib import Path

    from dpoflow.state.step import begin

    task = begin("add")
    total = sum(int(each) for each in Path(numbers.path).read_text().split())
    try:
        Path("/etc/motd").write_text("mine now")
        root_is = "writable"
    except OSError:
        root_is = "read-only"
    told = f"{word} make {total}; user {os.getuid()}; root {root_is}; key {os.environ.get('KEY')}"
    (Path(root) / "add.txt").write_text(told)
    return task.simply(lambda: told)


@dsl.component(base_image=CPU, install_kfp_package=False)
def falter(root: str) -> str:
    """Fails once, and then never again."""
    from pathlib import Path

    from dpoflow.contracts.errors import ServiceUnavailable
    from dpoflow.state.step import begin

    task = begin("falter")
    tried = Path(root) / "tried"

    def attempt() -> str:
        if not tried.exists():
            tried.touch()
            raise ServiceUnavailable("away for a moment")
        return "back"

    return task.simply(attempt)


@dsl.component(base_image=CPU, install_kfp_package=False)
def refuse(root: str) -> str:
    from dpoflow.contracts.errors import DataRejected
    from dpoflow.state.step import begin

    task = begin("refuse")

    def attempt() -> str:
        raise DataRejected("on purpose")

    return task.simply(attempt)


@dsl.component(base_image=CPU, install_kfp_package=False)
def follow(root: str, word: str) -> str:
    from dpoflow.state.step import begin

    return begin("follow").simply(lambda: word)


@dsl.component(base_image=CPU, install_kfp_package=False)
def exit_three(root: str):  # type: ignore[no-untyped-def]  # noqa: ANN201  # kfp: no output
    import sys

    sys.exit(3)


@dsl.component(base_image=CPU, install_kfp_package=False)
def eat(root: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    eaten = []
    while True:
        eaten.append(b"x" * 2**24)


@dsl.component(base_image=CPU, install_kfp_package=False)
def vanish(root: str):  # type: ignore[no-untyped-def]  # noqa: ANN201
    import time
    from pathlib import Path

    (Path(root) / "there").touch()
    time.sleep(3600)


@dsl.pipeline(name="boxes")
def boxes(root: str) -> None:
    counted = count(root=root)
    added = add(root=root, word=counted.outputs["Output"], numbers=counted.outputs["numbers"])
    faltering = falter(root=root).set_retry(num_retries=2, backoff_duration="1s")
    refused = refuse(root=root).set_retry(num_retries=0).after(added, faltering)
    follow(root=root, word=refused.output)


def compiled(folder: Path, pipeline: object) -> Path:
    path = folder / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path


@pytest.fixture(scope="module", autouse=True)
def cpu() -> Iterator[str]:
    """The image, and an environment in which podman runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONTAINERS_CONF", images.engine_environment()["CONTAINERS_CONF"])
        patch.delenv("DOCKER_HOST", raising=False)
        yield images.built_image("cpu")


def run_dag(home: Path, pipeline: object, memory: str | None = None) -> None:
    run_dir = home / "runs" / "one"
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "lock").open("w") as lock, in_containers([SPEC], home, memory=memory) as run:
        fcntl.flock(lock, fcntl.LOCK_EX)  # as claim_run does: a task dies when nobody holds it
        run(compiled(run_dir, pipeline), {"root": str(home)}, run_dir, {})


def left_over(run_dir: Path) -> list[str]:
    listed = images.podman("ps", "-aq", "--filter", f"label={LABEL}={run_dir}")
    assert listed.returncode == 0, listed.stderr
    return listed.stdout.split()


def test_tasks_that_succeed_fail_and_are_retried_end_as_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", "not for containers")

    with pytest.raises(DpoflowError, match="refuse: on purpose"):
        run_dag(tmp_path, boxes)

    records = read_records(tmp_path / "runs" / "one")
    assert {name: (each.state, each.attempt) for name, each in records.items()} == {
        "count": ("SUCCEEDED", 1),
        "add": ("SUCCEEDED", 1),
        "falter": ("SUCCEEDED", 2),
        "refuse": ("FAILED", 1),
    }
    told = (tmp_path / "add.txt").read_text()
    assert told == "three make 6; user 0; root read-only; key None"
    assert not left_over(tmp_path / "runs" / "one")


@pytest.mark.parametrize(
    ("component", "cause"),
    [
        (exit_three, "exit-three ended with 3"),
        (eat, r"eat was killed: .*for want of memory \(--memory 200m\)"),
        (vanish, "vanish is gone: somebody removed it"),
    ],
)
def test_a_container_that_ends_badly_is_a_failed_run_with_its_cause(
    component: object, cause: str, tmp_path: Path
) -> None:
    @dsl.pipeline(name="one")
    def one(root: str) -> None:
        component(root=root).set_retry(num_retries=0)  # type: ignore[operator]

    def remove() -> None:
        until((tmp_path / "there").exists, "the container was there")
        images.podman("rm", "--force", *left_over(tmp_path / "runs" / "one"))

    if component is vanish:
        threading.Thread(target=remove, daemon=True).start()

    with pytest.raises(TaskFailed, match=cause):
        run_dag(tmp_path, one, memory="200m")

    assert not left_over(tmp_path / "runs" / "one")


def test_an_image_that_is_not_here_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dpoflow_pipelines.backends.containers.CPU", "dpoflow-python-cpu:9.9.9")

    with pytest.raises(ConfigError, match=r"dpoflow-python-cpu:9\.9\.9 is not on this machine"):
        run_dag(tmp_path, boxes)

    assert not (tmp_path / "runs" / "one" / "tasks").exists()


def test_the_image_is_nobodys_in_particular_and_complete(cpu: str) -> None:
    """As a cluster starts it: its own user, a root that is read-only, nothing to install with."""
    probe = (
        "import os, importlib.util, pathlib; "
        "print(os.getuid(), importlib.util.find_spec('pip'), "
        "len(list(pathlib.Path('/opt/dpoflow/share/sbom').glob('*.cdx.json'))))"
    )
    options = ("run", "--rm", "--network=none", "--read-only", "--tmpfs=/tmp")

    told = images.podman(*options, cpu, "python3", "-c", probe)
    version = images.podman(*options, cpu, "dpoflow", "--help")

    assert told.stdout.split() == ["10001", "None", "1"], told.stderr
    assert version.returncode == 0, version.stderr


def test_the_image_keeps_nothing_of_pips_settings(cpu: str) -> None:
    settings = (images.CACHE / "pip.conf").read_text("utf-8")
    told = {word for word in settings.split() if "/" in word and not word.endswith(".crt")}

    def found(*words: str) -> str:
        asked = [option for word in words for option in ("-e", word)]
        places = ("/etc/pip.conf", "/etc/xdg", "/opt", "/var/cache")
        look = ("grep", "-rlF", "--binary-files=without-match", *asked, *places)
        return images.podman("run", "--rm", "--user=0", cpu, *look).stdout

    assert found(*told) == ""
    assert "/opt/dpoflow/bin/dpoflow" in found("dpoflow_pipelines")  # it does look


# ---------------------------------------------------------------- the main job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> SmallJob:
    """A whole one, with a model of its own."""
    folder = tmp_path_factory.mktemp("job")
    tiny_folder(folder / "model")
    environment = {"CONTAINERS_CONF": images.engine_environment()["CONTAINERS_CONF"]}
    return SmallJob(SmallJob.write(folder).folder, environment, patience_s=900)


def test_the_main_job_runs_in_containers_and_goes_on_where_it_was_killed(
    job: SmallJob, tmp_path: Path
) -> None:
    command = ("run", job.spec, "--home", str(tmp_path), "--on", "containers")
    process = job.start(*command)
    job.wait_for(process, tmp_path, "train", phase="train", done=2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    [run_dir] = (tmp_path / "runs").iterdir()
    until(lambda: not _running(run_dir), "a task ended with its runner")

    ended = job.call(*command)

    assert ended.code == 0, ended.out + ended.err
    told = summary(tmp_path)
    assert told["state"] == "SUCCEEDED"
    assert told["registry"]["version"] == 1
    assert {task["name"]: task["state"] for task in told["tasks"]} == dict.fromkeys(
        [
            *("snapshot", "validate", "synthesize", "merge"),
            *("train", "evaluate", "register", "conclude"),
        ],
        "SUCCEEDED",
    )
    assert not left_over(run_dir)
    processes = job.call("run", job.spec, "--home", str(tmp_path))  # the same, without containers
    assert processes.code == 0, processes.err
    assert all(task["reused"] for task in summary(tmp_path)["tasks"] if task["name"] == "train"), (
        "the state is the same wherever it was made"
    )


def test_what_is_stopped_leaves_no_container(job: SmallJob, tmp_path: Path) -> None:
    process = job.start("run", job.spec, "--home", str(tmp_path), "--on", "containers")
    job.wait_for(process, tmp_path, "validate")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=AT_MOST_S)

    assert process.returncode == 128 + signal.SIGTERM, err
    assert "the same command continues the run" in err
    [run_dir] = (tmp_path / "runs").iterdir()
    assert not left_over(run_dir)


def _running(run_dir: Path) -> bool:
    listed = images.podman("ps", "-q", "--filter", f"label={LABEL}={run_dir}")
    assert listed.returncode == 0, listed.stderr
    return bool(listed.stdout)


# ---------------------------------------------------------------- the server's image


def test_the_servers_image_serves_and_its_gate_asks_who_is_there() -> None:
    image, port = images.built_image("mlflow"), free_port()
    name = f"dpoflow-test-mlflow-{port}"
    options = ("run", "--detach", "--name", name, "--network=host", "--read-only", "--tmpfs=/tmp")
    for secret in ("MLFLOW_FLASK_SERVER_SECRET_KEY", "DPOFLOW_AUDIT_KEY"):
        options += (f"--env={secret}={'5' * 64}",)
    options += ("--env=MLFLOW_AUTH_ADMIN_PASSWORD=a-long-password-of-a-test",)
    options += ("--env=DPOFLOW_ROLES_YAML=reviewer: [rita]",)
    served = ("dpoflow", "server", "--home", ".", "--port", str(port))
    started = images.podman(*options, image, *served)
    try:
        assert started.returncode == 0, started.stderr
        assert _answer(f"http://127.0.0.1:{port}/health", name) == 200
        assert _answer(f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", name) == 401
    finally:
        images.podman("rm", "--force", name)


def _answer(url: str, name: str) -> int:
    given_up = time.monotonic() + AT_MOST_S
    while True:
        try:
            return requests.get(url, timeout=10).status_code
        except requests.ConnectionError:
            logs = images.podman("logs", name)
            assert time.monotonic() < given_up, logs.stdout + logs.stderr
            time.sleep(1)
