"""A fake of the Kubernetes API, over a real socket: TrainJobs, and pods with logs.

Written from the published models of Kubeflow Trainer 2.3: what is posted must survive a round trip
through them, where the real API server would drop or refuse it. A TrainJob that is given a place
really runs its command, as processes of this machine, and its conditions follow from how they end.

What a real cluster has and this has not: schedulers, JobSets, admission, watches, other objects.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from kubeflow_trainer_api.models import (  # type: ignore[import-untyped]
    trainer_v1alpha1_train_job,
)
from tests.fakes.served import Served
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable

TRAINJOBS = re.compile(
    r"/apis/trainer\.kubeflow\.org/v1alpha1/namespaces/(?P<ns>[^/]+)/trainjobs(?:/(?P<name>[^/?]+))?"
)
PODS = re.compile(r"/api/v1/namespaces/(?P<ns>[^/]+)/pods(?:/(?P<name>[^/?]+)/log)?")
TrainJob = trainer_v1alpha1_train_job.TrainerV1alpha1TrainJob

Answer = tuple[int, Any]


class FakeCluster(Served):
    """`schedules` says whether a TrainJob finds a place; `refuses` answers before anything does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.schedules = True
        self.lingers_s = 0.0
        """How long a job that was deleted waits for its pods to be gone."""
        self.refuses: Callable[[str, str], Answer | None] = lambda method, path: None
        self.jobs: dict[str, dict[str, Any]] = {}
        self.created: list[dict[str, Any]] = []
        self.deleted: list[str] = []
        self.on_delete: Callable[[str], None] = lambda name: None
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.RLock()
        super().__init__(self._handler())

    def __exit__(self, *told: object) -> None:
        super().__exit__(*told)
        for name in self._processes:
            self.evict(name)

    def kubeconfig(self) -> Path:
        """A file that points kubectl and its kin here."""
        host, port = self._server.server_address[:2]
        path = self.folder / "kubeconfig"
        page = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": f"http://{host}:{port}"}}],
            "users": [{"name": "me", "user": {"token": "not-a-secret"}}],
            "contexts": [
                {
                    "name": "fake",
                    "context": {"cluster": "fake", "user": "me", "namespace": "team"},
                }
            ],
        }
        path.write_text(json.dumps(page))
        return path

    # ------------------------------------------------------------ what the API does

    def answer(self, method: str, path: str, body: Any) -> Answer:
        refused = self.refuses(method, path)
        if refused is not None:
            return refused
        with self._lock:
            if (match := TRAINJOBS.match(path)) is not None:
                return self._trainjobs(method, match["name"], body)
            if (match := PODS.match(path)) is not None:
                return self._pods(match["name"])
        return 404, {"message": f"the server could not find {path}"}

    def _trainjobs(self, method: str, name: str | None, body: Any) -> Answer:
        if method == "POST":
            return self._create(body)
        if name not in self.jobs:
            return 404, {"reason": "NotFound", "message": f'trainjobs "{name}" not found'}
        assert name is not None
        if method == "PATCH":
            self.jobs[name]["metadata"] |= body["metadata"]
        if method == "DELETE":
            self.on_delete(name)
            self._delete(name)
            return 200, {"status": "Success"}
        self._look_after(name)
        return 200, self.jobs[name]

    def _delete(self, name: str) -> None:
        """As with propagation Foreground: the job goes when its pods have gone."""
        if not self.lingers_s:
            self.drop(name)
        elif "deletionTimestamp" not in self.jobs[name]["metadata"]:
            self.jobs[name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            later = threading.Timer(self.lingers_s, self.drop, [name])
            later.daemon = True  # who ends does not wait for it
            later.start()

    def _create(self, body: Any) -> Answer:
        name = body["metadata"]["name"]
        if name in self.jobs:
            return 409, {"reason": "AlreadyExists", "message": f'trainjobs "{name}" already exists'}
        if TrainJob.from_dict(body).to_dict() != body:
            return 400, {"message": "strict decoding error: unknown field"}
        self.jobs[name] = json.loads(json.dumps(body))
        self.created.append(body)
        self._look_after(name)
        return 201, self.jobs[name]

    def _look_after(self, name: str) -> None:
        """What Kubeflow's controller and a scheduler would have done by now."""
        job = self.jobs[name]
        if self.schedules and name not in self._processes:
            self._processes[name] = self._start(job)
        process = self._processes.get(name)
        code = process.poll() if process else None
        node = dict.fromkeys(("active", "failed", "ready", "succeeded", "suspended"), 0)
        node["active"] = int(code is None)
        node["ready"] = int(process is not None and code is None)
        node["failed"], node["succeeded"] = int(bool(code)), int(code == 0)
        conditions = []
        if code == 0:
            conditions = [_condition("Complete", "JobsCompleted", "jobset completed successfully")]
        elif code is not None:
            why = "a pod was evicted" if code < 0 else f"container node exited with {code}"
            conditions = [_condition("Failed", "FailedJobs", f"jobset failed: {why}")]
        job["status"] = {"conditions": conditions, "jobsStatus": [{"name": "node", **node}]}

    def _start(self, job: dict[str, Any]) -> "subprocess.Popen[bytes]":
        trainer = job["spec"]["trainer"]
        assert trainer["command"] == ["torchrun"]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(trainer["numProcPerNode"]), *trainer["args"]),
        ]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
        }
        with self.log(job["metadata"]["name"]).open("ab") as out:
            return subprocess.Popen(command, stdout=out, stderr=out, env=environment)

    def _pods(self, name: str | None) -> Answer:
        if name is not None:
            job = name.removesuffix("-node-0-0")
            return 200, self.log(job).read_text()
        names = [f"{job}-node-0-0" for job in self._processes if job in self.jobs]
        items = [{"metadata": {"name": each}} for each in names]
        return 200, {"apiVersion": "v1", "kind": "PodList", "items": items}

    # ------------------------------------------------------------ what a test does to it

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def drop(self, name: str) -> None:
        """The job and its pods are gone."""
        with self._lock:
            self.evict(name)
            self.jobs.pop(name, None)
            self._processes.pop(name, None)
            self.deleted.append(name)

    def evict(self, name: str) -> None:
        """Its pods are killed, as when a node is taken away: nothing in a pod outlives that."""
        process = self._processes.get(name)
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # it starts nobody any more
            # torchrun's workers are in sessions of their own: the group does not hold them.
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()

    def await_job(self) -> str:
        """The name of the first job, once it is there."""
        until(lambda: self.jobs, "a TrainJob was created")
        with self._lock:  # whoever created it was told so
            return next(iter(self.jobs))

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(size)) if size else None
                code, said = cluster.answer(self.command, self.path, body)
                text = said if isinstance(said, str) else json.dumps(said)
                self.send_response(code)
                kind = "text/plain" if isinstance(said, str) else "application/json"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_PATCH = do_DELETE = _serve

            def log_message(self, *_: object) -> None:
                """Silence."""

        return Handler


def _condition(kind: str, reason: str, message: str) -> dict[str, str]:
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
