"""What a container of a run would see, and what is refused before there is one."""

from pathlib import Path

import pytest

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.spec import Spec
from dpoflow_pipelines.backends.containers import in_containers
from dpoflow_pipelines.backends.engines import engine
from dpoflow_pipelines.backends.seen_inside import check_tracking, environment, mounts, own_secrets

JUDGE = {
    "models": [{"endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}],
}


def spec(folder: Path, **sections: object) -> Spec:
    return Spec.model_validate(
        {
            "name": "inside",
            "model": str(folder / "model"),
            "data": {"sources": [{"uri": f"file://{folder}/two%20words.jsonl"}]},
            **sections,
        }
    )


def seen(folder: Path, given: Spec) -> dict[str, tuple[str, bool]]:
    return {
        each["Target"]: (each["Source"], each["ReadOnly"])
        for each in mounts(given, folder / "home")
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model", "home", "cache"):
        (tmp_path / name).mkdir()
    (tmp_path / "two words.jsonl").touch()
    return tmp_path


def test_the_home_is_writable_and_what_the_spec_names_is_not(folder: Path) -> None:
    found = seen(folder, spec(folder))

    assert found[str(folder / "home")] == (str(folder / "home"), False)
    for name in ("model", "two words.jsonl"):
        assert found[str(folder / name)] == (str(folder / name), True)


def test_a_model_of_links_is_seen_with_what_they_lead_to(folder: Path) -> None:
    (folder / "cache" / "blob").touch()
    (folder / "model" / "model.safetensors").symlink_to("../cache/blob")

    assert str(folder / "cache") in seen(folder, spec(folder))


def test_a_model_in_a_package_is_laid_into_the_image_but_never_over_our_own_code(
    folder: Path,
) -> None:
    for package, there in (("gguf", True), ("dpoflow", False)):
        given = spec(folder).model_copy(update={"model": f"package://{package}/x.gguf"})
        targets = seen(folder, given)
        assert any(target.endswith(f"/{package}") for target in targets) is there


def test_a_container_is_told_what_its_code_reads_and_nobodys_keys(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "ca.pem").touch()
    monkeypatch.chdir(folder)
    for name, value in {
        "MLFLOW_TRACKING_USERNAME": "ada",
        "SSL_CERT_FILE": "ca.pem",
        "MLFLOW_RUN_ID": "mine",
        "DPOFLOW_RUNNER_PID": "1",
        "DPOFLOW_AUDIT_KEY": "k",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "k",
        "AWS_SECRET_ACCESS_KEY": "k",
    }.items():
        monkeypatch.setenv(name, value)

    told = environment()

    assert told["MLFLOW_TRACKING_USERNAME"] == "ada"
    assert told["SSL_CERT_FILE"] == str(folder / "ca.pem")
    assert str(folder / "ca.pem") in seen(folder, spec(folder))
    assert not {"MLFLOW_RUN_ID", "DPOFLOW_RUNNER_PID", "AWS_SECRET_ACCESS_KEY"} & told.keys()
    assert "k" not in told.values()


def test_only_evaluation_sees_the_signing_key_and_only_who_reads_s3_its_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "key.pem").touch()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DPOFLOW_SIGNING_KEY", "key.pem")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    given = spec(folder, evaluate={"signer": "c" * 64})

    told = {task: own_secrets(given, task) for task in ("snapshot", "train", "evaluate")}

    signing = {task for task, (variables, _) in told.items() if "DPOFLOW_SIGNING_KEY" in variables}
    assert signing == {"evaluate"}
    variables, files = told["evaluate"]
    assert variables["DPOFLOW_SIGNING_KEY"] == files[0]["Target"] == str(folder / "key.pem")
    assert "AWS_SECRET_ACCESS_KEY" in told["snapshot"][0]
    assert told["train"] == ({}, [])


@pytest.mark.parametrize(
    ("uri", "fits"),
    [
        ("", True),
        ("http://127.0.0.1:5000", True),
        ("databricks", True),
        ("postgresql://db/mlflow", True),
        ("sqlite:///HOME/mlflow.db", True),
        ("file://HOME/mlruns", True),
        ("sqlite:///mlflow.db", False),
        ("./mlruns", False),
        ("sqlite:////elsewhere/mlflow.db", False),
    ],
)
def test_a_store_of_mlflow_that_no_container_sees_is_refused(
    uri: str, fits: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = folder / "home"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.replace("HOME", str(home)))

    if fits:
        check_tracking(home)
    else:
        with pytest.raises(ConfigError, match="no absolute path inside the home"):
            check_tracking(home)


@pytest.mark.parametrize(
    ("train", "memory", "said"),
    [
        ({"backend": "trainjob"}, None, r"train\.backend: trainjob: our images have not"),
        ({"compile": True}, None, r"train\.compile: our images have not"),
        ({"method": "lora", "lora": {"bits": 4}}, None, r"train\.lora\.bits without a GPU"),
        ({}, "much", "--memory much is no size; give one such as 8g"),
        ({}, "-1", "--memory -1 is no size; give one such as 8g"),
    ],
)
def test_what_cannot_be_run_in_containers_is_told_before_an_engine_is_asked(
    train: dict[str, object],
    memory: str | None,
    said: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")

    with (
        pytest.raises(ConfigError, match=said),
        in_containers([spec(folder, train=train)], folder / "home", memory=memory),
    ):
        pass


def test_a_machine_without_an_engine_and_an_engine_elsewhere_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("DOCKER_HOST", "ssh://box")
    with pytest.raises(ConfigError, match="their engine must be here"), engine():
        pass
    monkeypatch.setenv("DOCKER_HOST", f"unix://{folder}/none.sock")
    with pytest.raises(ServiceUnavailable, match="no container engine answers"), engine():
        pass
