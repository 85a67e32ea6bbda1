"""A fake of Kubeflow Pipelines' API (v2beta1), over a real socket.

Written from the published models of kfp-server-api 2.17: a body that is posted must survive a round
trip through them, where the real server would refuse it, and what is answered is made of them.

What the real server has and this has not: Argo, drivers, caching, artifacts, RBAC, validation of
the DAG. Runs go on as a test says.
"""

import datetime as dt
import email
import itertools
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api
import yaml
from tests.fakes.served import Served

Answer = tuple[int, Any]
CUT = 0
"""As a status: the connection is closed without an answer."""

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_LISTS = {
    "pipelines": api.V2beta1ListPipelinesResponse,
    "versions": api.V2beta1ListPipelineVersionsResponse,
    "experiments": api.V2beta1ListExperimentsResponse,
    "runs": api.V2beta1ListRunsResponse,
    "recurringruns": api.V2beta1ListRecurringRunsResponse,
}
_ABOUT_PAGES = {"next_page_token", "total_size"}
_IDS = {
    "pipelines": "pipeline_id",
    "experiments": "experiment_id",
    "runs": "run_id",
    "recurringruns": "recurring_run_id",
}
_MODELS = {
    "pipelines": api.V2beta1Pipeline,
    "experiments": api.V2beta1Experiment,
    "runs": api.V2beta1Run,
    "recurringruns": api.V2beta1RecurringRun,
}


class FakeKfp(Served):
    """`answers` comes before the API: a status with a body, CUT, or None to go on.

    `after` is asked once a write was done: the same, for an answer that gets lost.
    """

    def __init__(self, *, multi_user: bool = True, page: int = 2) -> None:
        self.multi_user = multi_user
        self.page = page
        """Of a list, whatever is asked for: lists come in several pages."""
        self.answers: Callable[[str, str], Answer | None] = lambda method, path: None
        self.after: Callable[[str, str], Answer | None] = lambda method, path: None
        self.stored: dict[str, dict[str, Any]] = {kind: {} for kind in _MODELS}
        self.versions: dict[str, Any] = {}
        self.requests: list[tuple[str, str]] = []
        self.tokens: set[str] = set()
        self._number = itertools.count(1)
        self._client = api.ApiClient(api.Configuration())
        self._lock = threading.Lock()
        super().__init__(self._handler())

    # ------------------------------------------------------------ what the API does

    def answer(self, method: str, target: str, body: bytes, content_type: str) -> Answer:
        path = urlsplit(target).path.removeprefix("/apis/v2beta1/")
        query = {key: values[0] for key, values in parse_qs(urlsplit(target).query).items()}
        with self._lock:
            self.requests.append((method, path))
        if (early := self.answers(method, path)) is not None:
            return early
        with self._lock:
            told = self._route(method, path, query, body, content_type)
        late = self.after(method, path) if method != "GET" else None
        return told if late is None else late

    def _route(
        self, method: str, path: str, query: dict[str, str], body: bytes, content_type: str
    ) -> Answer:
        if path == "pipelines/upload_version":
            return self._upload(query, body, content_type)
        if match := re.fullmatch(r"pipelines/([^/]+)/versions", path):
            mine = [each for each in self.versions.values() if each.pipeline_id == match[1]]
            return self._listed(mine, "versions", query)
        kind, _, rest = path.partition("/")
        if kind not in _MODELS:
            health = api.V2beta1GetHealthzResponse(multi_user=self.multi_user)
            return (200, health) if path == "healthz" else (404, {"message": f"no route {path}"})
        if not rest:
            return self._create(kind, body) if method == "POST" else self._list(kind, query)
        return self._one(method, kind, *rest.partition(":")[::2])

    def _one(self, method: str, kind: str, name: str, verb: str) -> Answer:
        found = self.stored[kind].get(name)
        if found is None:
            return 404, {"code": 5, "message": f"{kind} {name} not found."}
        if method == "DELETE":
            del self.stored[kind][name]
            return 200, {}
        return self._do(found, verb) if verb else (200, found)

    def _create(self, kind: str, body: bytes) -> Answer:
        told = json.loads(body)
        made = self._read(told, _MODELS[kind])
        if self._client.sanitize_for_serialization(made) != told:
            return 400, {"code": 3, "message": "unknown field in the request body"}
        names = {each.display_name for each in self.stored[kind].values()}
        if kind in ("pipelines", "experiments") and made.display_name in names:
            return 409, {"code": 6, "message": f"{made.display_name} already exists."}
        if not self.multi_user and getattr(made, "namespace", None):
            return 400, {"code": 3, "message": "In single-user mode, namespace must be empty."}
        identity = f"{kind}-{next(self._number)}"
        setattr(made, _IDS[kind], identity)
        made.created_at = NOW
        if kind == "runs":
            reference = made.pipeline_version_reference
            if reference.pipeline_version_id not in self.versions:
                return 404, {"code": 5, "message": "PipelineVersion not found."}
            made.state = "PENDING"
        if kind == "recurringruns":
            made.status = "ENABLED" if made.mode == "ENABLE" else "DISABLED"
        self.stored[kind][identity] = made
        return 200, made

    def _list(self, kind: str, query: dict[str, str]) -> Answer:
        if not self.multi_user and query.get("namespace"):
            message = "In single-user mode, the list cannot be filtered by namespace."
            return 400, {"code": 3, "message": message}
        items = list(self.stored[kind].values())
        if experiment := query.get("experiment_id"):
            items = [each for each in items if each.experiment_id == experiment]
        return self._listed(items, kind, query)

    def _listed(self, items: list[Any], kind: str, query: dict[str, str]) -> Answer:
        for predicate in json.loads(query.get("filter") or "{}").get("predicates", ()):
            assert (predicate["operation"], predicate["key"]) == ("EQUALS", "display_name")
            items = [each for each in items if each.display_name == predicate["stringValue"]]
        start = int(query.get("page_token") or 0)
        size = min(self.page, int(query.get("page_size") or 10))
        end = start + size
        token = str(end) if end < len(items) else ""
        model = _LISTS[kind]
        field = next(name for name in model.openapi_types if name not in _ABOUT_PAGES)
        given = {field: items[start:end], "next_page_token": token, "total_size": len(items)}
        return 200, model(**given)

    def _upload(self, query: dict[str, str], body: bytes, content_type: str) -> Answer:
        message = email.message_from_bytes(
            b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
        )
        (part,) = message.get_payload()
        documents = list(yaml.load_all(part.get_payload(decode=True), Loader=yaml.CSafeLoader))
        pipeline, name = query["pipelineid"], query["name"]
        if pipeline not in self.stored["pipelines"]:
            return 404, {"code": 5, "message": "Pipeline not found."}
        taken = [each for each in self.versions.values() if each.pipeline_id == pipeline]
        if any(each.display_name == name for each in taken):
            return 409, {"code": 6, "message": f"The name {name} already exists."}
        made = api.V2beta1PipelineVersion(
            pipeline_id=pipeline,
            pipeline_version_id=f"version-{next(self._number)}",
            display_name=name,
            created_at=NOW,
            pipeline_spec={"pipeline_spec": documents[0], "platform_spec": documents[1]},
        )
        self.versions[made.pipeline_version_id] = made
        return 200, made

    def _do(self, found: Any, verb: str) -> Answer:
        if verb == "terminate":
            found.state = "CANCELING"
        elif verb in ("enable", "disable"):
            found.status = f"{verb.upper()}D"
        else:
            return 404, {"message": f"no verb {verb}"}
        return 200, {}

    def _read(self, told: Any, model: type) -> Any:
        response = type("Response", (), {"data": json.dumps(told)})
        return self._client.deserialize(response, model)

    # ------------------------------------------------------------ what a test does to it

    def run(self) -> Any:
        """The only run."""
        (found,) = self.stored["runs"].values()
        return found

    def writes(self) -> list[str]:
        """Paths of all that was asked to change something."""
        return [path for method, path in self.requests if method != "GET"]

    def goes_on(self, state: str, **tasks: tuple[str, str]) -> None:
        """The only run is in `state`, and its tasks in theirs: name to (state, what failed)."""
        run = self.run()
        run.state = state
        details = [
            api.V2beta1PipelineTaskDetail(
                run_id=run.run_id,
                task_id=f"task-{number}",
                display_name=name,
                create_time=NOW + dt.timedelta(minutes=number),
                start_time=NOW + dt.timedelta(minutes=number),
                end_time=NOW + dt.timedelta(minutes=number + 1),
                state=is_in,
                error=api.GoogleRpcStatus(code=13, message=said) if said else None,
            )
            for number, (name, (is_in, said)) in enumerate(tasks.items())
        ]
        run.run_details = api.V2beta1RunDetails(task_details=details)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                fake.tokens.add(self.headers.get("authorization") or "")
                kind = self.headers.get("Content-Type") or ""
                code, said = fake.answer(self.command, self.path, body, kind)
                if code == CUT:
                    self.close_connection = True
                    return
                plain = fake._client.sanitize_for_serialization(said)
                text = json.dumps(plain).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_DELETE = _serve

            def log_message(self, *_: object) -> None:
                """Silence."""

        return Handler


def times(many: int, answer: Answer, on: str) -> Callable[[str, str], Answer | None]:
    """This answer to the first `many` requests `METHOD path`, and none after them."""
    left = [many]

    def told(method: str, path: str) -> Answer | None:
        if not re.fullmatch(on, f"{method} {path}") or left[0] == 0:
            return None
        left[0] -= 1
        return answer

    return told
