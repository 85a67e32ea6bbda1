"""Digests of a submission are those that the decision will name; who submits is a team's matter."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from dpoflow.contracts.base import sha256_json
from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.contracts.spec import EvaluateConfig
from dpoflow.contracts.spec_file import load_spec
from dpoflow.registry.submission import section_digests
from dpoflow.registry.team import asked_team, team_server

DEMO = Path(__file__).parents[2] / "pipelines" / "configs" / "demo.yaml"


def test_the_evaluate_digest_is_what_a_decision_says_of_its_config() -> None:
    spec = load_spec(DEMO)
    # As evaluate/component.py reads it, and evaluate/document.py hashes it.
    knobs = EvaluateConfig.model_validate_json(spec.arguments()["evaluate_config"])

    assert section_digests(spec)["evaluate"] == sha256_json(knobs)


def test_a_changed_gate_is_another_digest_of_evaluate_and_of_nothing_else() -> None:
    before = section_digests(load_spec(DEMO))
    after = section_digests(load_spec(DEMO, ["evaluate.max_prompts=33"]))

    assert {name for name in before if before[name] != after[name]} == {"evaluate"}


@pytest.fixture
def answering() -> Iterator[Any]:
    """A server that answers everything with one status and body, set by the test."""

    class Handler(BaseHTTPRequestHandler):
        status, body = 404, b""

        def do_GET(self) -> None:
            self.send_response(type(self).status)
            self.send_header("Content-Length", str(len(type(self).body)))
            self.end_headers()
            self.wfile.write(type(self).body)

        def log_message(self, *arguments: Any) -> None:
            """Silent."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.url = f"http://ada:s3cret@127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(("status", "body"), [(404, b""), (200, b"<html>welcome</html>")])
def test_a_stock_server_is_no_team_server(
    answering: Any, status: int, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.status, answering.body = status, body
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering.url)

    assert team_server() is None
    with pytest.raises(ConfigError, match="no server with the approval gate") as told:
        asked_team()
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("uri", ["", "sqlite:///mlflow.db", "file:///tmp/mlruns"])
def test_a_local_store_is_no_team_server(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)

    assert team_server() is None


def test_a_server_that_does_not_know_the_user_says_which_settings_to_mend(
    answering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering.status = 401
    monkeypatch.setenv("MLFLOW_TRACKING_URI", answering.url)

    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_USERNAME"):
        team_server()


def test_a_server_that_is_away_is_an_outage_and_its_password_stays_out_of_the_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:s3cret@127.0.0.1:9")

    with pytest.raises(ServiceUnavailable, match="does not answer") as told:
        team_server()

    assert "s3cret" not in str(told.value)
