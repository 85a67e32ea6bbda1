"""A real MLflow server with users, on loopback, and people who do there what its pages do for them.

Gives   `MlflowServer`, `Person`
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import requests
from tests.seaweed import free_port
from tests.waiting import AT_MOST_S

ADMIN, PASSWORD = "admin", "password-of-the-test"  # of a server on loopback
_CONFIG = """[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{folder}/users.db
admin_username = {admin}
admin_password = {password}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 600
"""


class Person:
    """A user who asks the server for what MLflow's own pages ask it for."""

    def __init__(self, url: str, name: str, password: str = PASSWORD) -> None:
        self.name, self._url, self._login = name, url, (name, password)

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        """Whatever the server answers."""
        address, most = f"{self._url}/{path}", AT_MOST_S
        return requests.request(method, address, auth=self._login, timeout=most, **more)

    def get(self, path: str, **more: Any) -> Any:
        """What must be there."""
        reply = self.ask("GET", path, **more)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """What must be allowed."""
        reply = self.ask("POST", path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def queue(self, experiment_id: str, name: str) -> str:
        """The id of a review queue."""
        asked = {"experiment_id": experiment_id, "name": name}
        found = self.get("ajax-api/3.0/mlflow/review-queues/get-by-name", params=asked)
        return str(found["review_queue"]["queue_id"])

    def items(self, queue_id: str) -> list[str]:
        """The traces of a queue."""
        path = "ajax-api/3.0/mlflow/review-queues/items/list"
        return [
            str(each["item_id"])
            for each in self.get(path, params={"queue_id": queue_id}).get("items", [])
        ]

    def answers(self, trace_id: str) -> dict[str, str]:
        """What a comparison's page shows: each answer by its side."""
        found = self.get("ajax-api/3.0/mlflow/traces/get", params={"trace_id": trace_id})
        (span,) = found["trace"]["spans"]
        values = {each["key"]: each["value"] for each in span["attributes"]}
        sides = values["mlflow.spanOutputs"]["kvlist_value"]["values"]
        return {each["key"]: each["value"]["string_value"] for each in sides}

    def say(
        self,
        trace_id: str,
        value: Any,
        *,
        name: str = "Which answer is better?",
        as_: str | None = None,
        why: str | None = None,
        instead_of: str | None = None,
    ) -> str:
        """An assessment; its id. `as_` is what the client says of who gives it."""
        given: dict[str, Any] = {
            "assessment_name": name,
            "trace_id": trace_id,
            "source": {"source_type": "HUMAN", "source_id": as_ or self.name},
            "feedback": {"value": value},
        }
        given |= {"rationale": why} if why else {}
        given |= {"overrides": instead_of} if instead_of else {}
        path = f"ajax-api/3.0/mlflow/traces/{trace_id}/assessments"
        return str(self.post(path, {"assessment": given})["assessment"]["assessment_id"])

    def finish(self, queue_id: str, trace_id: str, status: str = "COMPLETE") -> requests.Response:
        """Set an item's status; the page sends a name along, too."""
        body = {"queue_id": queue_id, "item_id": trace_id, "status": status}
        return self.ask(
            "POST",
            "ajax-api/3.0/mlflow/review-queues/items/set-status",
            json={**body, "completed_by": "somebody-else"},
        )


class MlflowServer:
    """`mlflow server --app-name basic-auth` over sqlite in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of the server."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def admin(self) -> Person:
        """Who may everything."""
        return Person(self.url, ADMIN)

    def start(self) -> Self:
        """Until it knows its administrator."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "auth.ini"
        config.write_text(_CONFIG.format(folder=self._folder, admin=ADMIN, password=PASSWORD))
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
            *("--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db"),
            *("--artifacts-destination", str(self._folder / "artifacts")),
            *("--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"),
        ]
        own = {
            "MLFLOW_AUTH_CONFIG_PATH": str(config),
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-test",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
        }
        outside = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        with (self._folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=outside | own, start_new_session=True
            )
        self._wait()
        return self

    def _wait(self) -> None:
        given_up = time.monotonic() + AT_MOST_S
        while True:
            try:
                self.admin.get("api/2.0/mlflow/users/current")
            except (requests.RequestException, AssertionError):
                assert time.monotonic() < given_up, (self._folder / "server.log").read_text()
                time.sleep(0.3)
            else:
                return

    def add(self, name: str) -> Person:
        """A user, known from now on."""
        self.admin.post("api/2.0/mlflow/users/create", {"username": name, "password": PASSWORD})
        return Person(self.url, name)

    def allow(self, person: Person, experiment_id: str, permission: str) -> None:
        """Give somebody a permission on an experiment."""
        self.admin.post(
            "api/3.0/mlflow/users/permissions/grant",
            {
                "username": person.name,
                "resource_type": "experiment",
                "resource_id": experiment_id,
                "permission": permission,
            },
        )

    def stop(self) -> None:
        """With all its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=AT_MOST_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
