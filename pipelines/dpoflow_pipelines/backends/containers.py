"""Run a compiled DAG on this machine, one container a task: kfp.local, by podman or docker.

Reads   a compiled pipeline and its arguments; DOCKER_HOST, else the engines' usual sockets
Gives   `in_containers`: how `run_spec` runs a spec there
Not     making the images (infra/images), what became of the tasks (laptop.py reads their records)

A container sees the home, what the spec names on this machine (read-only) and this machine's
network; its root is read-only, it has no capabilities, and its files belong to whoever runs it.
"""

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import docker
from docker import errors
from docker.types import DeviceRequest, Mount

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.images import CPU, GPU
from dpoflow.registry.signature import KEY_FILE
from dpoflow.state.surroundings import RUN_DIR
from dpoflow_pipelines.backends.laptop import ALWAYS, Runner, run_dag
from dpoflow_pipelines.spending import endpoints_of

if TYPE_CHECKING:
    from kfp.local.status import Status

    from dpoflow.contracts.spec import Spec

_LABEL = "io.dpoflow.run"
"""On a container: the folder of the run that it works for."""
_PACKAGES = "/opt/dpoflow/lib/python3.11/site-packages"
"""Of our images."""
_SCRATCH = "/tmp"  # noqa: S108  # where our images write, and nowhere else
_KILLED = 128 + signal.SIGKILL
_OURS = ("AWS_", "DPOFLOW_", "MLFLOW_", "OMP_")
"""How variables begin that a step may read."""
_THEIRS = {
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
}


@dataclass(frozen=True)
class Containers:
    """What every container of a run is made with."""

    client: docker.DockerClient
    images: Mapping[str, str]
    """What a DAG calls an image to its id on this machine."""
    settings: Mapping[str, Any]
    """As docker's `run` takes them."""
    environment: Mapping[str, str]
    ended: dict[str, str] = field(default_factory=dict)
    """Component to how the last container of it ended, where that was badly."""

    def run(
        self, ir: Path, arguments: Mapping[str, str], run_dir: Path, environment: Mapping[str, str]
    ) -> None:
        """Run the DAG to its end; see laptop.py. No container of the run is left."""
        from kfp import local

        told = {**self.environment, **ALWAYS, **environment, RUN_DIR: str(run_dir)}
        scratch = run_dir / "tmp"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        self._remove_all(run_dir)  # of a runner that was killed
        runner = local.DockerRunner(
            environment=told,
            labels={_LABEL: str(run_dir)},
            **{**self.settings, "mounts": [*self.settings["mounts"], _bound(scratch, _SCRATCH)]},
        )
        try:
            with _handled_by(self):
                run_dag(ir, arguments, run_dir=run_dir, runner=runner, ended=self.ended)
        finally:
            self._remove_all(run_dir)
            shutil.rmtree(scratch, ignore_errors=True)

    def _remove_all(self, run_dir: Path) -> None:
        ours = {"label": f"{_LABEL}={run_dir}"}
        for each in self.client.containers.list(all=True, filters=ours, ignore_removed=True):
            _remove(each)


class _Task:
    """One attempt at one task, for kfp.local.

    kfp's own handler takes a container that is gone before it was asked for a success.
    """

    def __init__(
        self,
        how: Containers,
        image: str,
        full_command: list[str],
        pipeline_root: str,
        runner: Any,
        env_vars: dict[str, str] | None = None,
    ) -> None:
        self._how, self._image, self._command = how, how.images[image], full_command
        self._settings = {**runner.container_run_args, "environment": env_vars or {}}
        function = full_command[full_command.index("--function_to_execute") + 1]
        self._name = function.replace("_", "-")  # as kfp calls the component

    def run(self) -> "Status":
        """To its end; what it printed goes to our standard output."""
        from kfp.local.status import Status

        badly = self._ended_badly()
        if badly is None:
            self._how.ended.pop(self._name, None)
            return Status.SUCCESS
        print(f"the container of {self._name} {badly}")  # noqa: T201  # the run's log
        self._how.ended[self._name] = badly
        return Status.FAILURE

    def _ended_badly(self) -> str | None:
        container = None
        try:
            container = self._how.client.containers.run(
                self._image, self._command, detach=True, **self._settings
            )
            for line in container.logs(stream=True):
                print(line.decode("utf-8", "replace"), end="")  # noqa: T201  # the run's log
            code = container.wait()["StatusCode"]
            container.reload()
            killed = container.attrs["State"].get("OOMKilled", False)
        except errors.NotFound:
            return "is gone: somebody removed it"
        except (errors.APIError, OSError) as error:  # requests' errors are OSErrors
            return f"was lost by its engine: {error}"
        finally:
            if container is not None:
                _remove(container)
        if killed or code == _KILLED:  # not every engine tells the kernel's kills from others
            limit = self._settings.get("mem_limit")
            how = "" if killed else "by somebody or "
            return f"was killed, {how}for want of memory" + (
                f" (--memory {limit})" if limit else ""
            )
        return f"ended with {code}" if code else None


@contextlib.contextmanager
def in_containers(spec: "Spec", home: Path, *, memory: str | None = None) -> Iterator[Runner]:
    """How `spec` is run in containers; `memory` is the most that each may take, such as 8g.

    Raises ConfigError where there is no engine or no image, or the spec names what no container
    could see; ServiceUnavailable where DOCKER_HOST does not answer.
    """
    if memory is not None:
        try:
            docker.utils.parse_bytes(memory)
        except errors.DockerException:
            raise ConfigError(f"--memory {memory} is no size; give one such as 8g") from None
    _check_tracking(home)
    with _engine() as client:
        gpu = _uses_gpu(spec)
        yield Containers(
            client,
            _images(client, gpu=gpu),
            _settings(client, spec, home, memory, gpu=gpu),
            dict(_environment(spec)),
        ).run


# ---------------------------------------------------------------- the engine


@contextlib.contextmanager
def _engine() -> Iterator[docker.DockerClient]:
    given = os.environ.get("DOCKER_HOST")
    if given:
        client = _answering(given)
        if client is None:
            raise ServiceUnavailable(
                f"no container engine answers at DOCKER_HOST {given}; start it, or unset that"
            )
        with contextlib.closing(client):
            yield client
        return
    sockets = ["/var/run/docker.sock", "/run/podman/podman.sock"]
    if own := os.environ.get("XDG_RUNTIME_DIR"):
        sockets += [f"{own}/podman/podman.sock", f"{own}/docker.sock"]
    for socket in sockets:
        if os.access(socket, os.W_OK) and (client := _answering(f"unix://{socket}")) is not None:
            with contextlib.closing(client):
                yield client
            return
    if shutil.which("podman") is None:
        raise ConfigError(
            "neither docker nor podman answers on this machine; start one, install one (Debian: "
            "apt-get install podman), name one in DOCKER_HOST, or run without --on containers"
        )
    with _podman() as client:
        yield client


@contextlib.contextmanager
def _podman() -> Iterator[docker.DockerClient]:
    """Podman needs no daemon, and speaks docker's API while somebody asks it to."""
    with tempfile.TemporaryDirectory(prefix="dpoflow-podman-") as folder:
        socket, log = Path(folder) / "podman.sock", Path(folder) / "log"
        # The time ends it by itself where this process is killed: containers end, and nobody asks.
        command = ["podman", "system", "service", "--time=60", f"unix://{socket}"]
        with log.open("wb") as out:
            service = subprocess.Popen(  # noqa: S603  # nothing in it is anybody's input
                command, stdout=out, stderr=out, cwd=folder, start_new_session=True
            )
        try:
            deadline = time.monotonic() + 30
            while (client := _answering(f"unix://{socket}") if socket.exists() else None) is None:
                if service.poll() is not None or time.monotonic() > deadline:
                    said = log.read_text("utf-8", "replace").strip()[-400:]
                    raise ConfigError(f"podman does not start its service: {said or 'no answer'}")
                time.sleep(0.1)
            with contextlib.closing(client):
                yield client
        finally:
            service.terminate()
            service.wait()


def _answering(url: str) -> docker.DockerClient | None:
    try:  # an API version asks the engine nothing; the oldest that has all we use
        client = docker.DockerClient(base_url=url, version="1.41")
    except errors.DockerException:
        return None  # no address
    try:
        client.ping()
    except (errors.DockerException, OSError):
        client.close()
        return None
    return client


def _remove(container: Any) -> None:
    with contextlib.suppress(errors.NotFound, errors.APIError, OSError):
        container.remove(force=True)


@contextlib.contextmanager
def _handled_by(how: Containers) -> Iterator[None]:
    """kfp.local looks its handler up by this name for each task."""
    from kfp.local import docker_task_handler

    theirs = docker_task_handler.DockerTaskHandler
    docker_task_handler.DockerTaskHandler = functools.partial(_Task, how)
    try:
        yield
    finally:
        docker_task_handler.DockerTaskHandler = theirs


# ---------------------------------------------------------------- what a container gets


def _uses_gpu(spec: "Spec") -> bool:
    if spec.train.device == "auto":
        import torch

        return torch.cuda.is_available()
    return spec.train.device == "cuda"


def _images(client: docker.DockerClient, *, gpu: bool) -> dict[str, str]:
    """Without a GPU the smaller image does all: the steps are the same in both."""
    found = {}
    for name, here in {CPU: CPU, GPU: GPU if gpu else CPU}.items():
        for spelt in (here, f"localhost/{here}"):  # as podman names what was built here
            with contextlib.suppress(errors.ImageNotFound):
                found[name] = client.images.get(spelt).id
                break
        else:
            target = "gpu" if here == GPU else "cpu"
            raise ConfigError(
                f"the image {here} is not on this machine; make it with: make images ARGS={target}"
            )
    return found


def _settings(
    client: docker.DockerClient, spec: "Spec", home: Path, memory: str | None, *, gpu: bool
) -> dict[str, Any]:
    # Without root's rights an engine gives the container's root the rights of whoever started it.
    rootless = any("rootless" in each for each in client.info().get("SecurityOptions") or ())
    settings: dict[str, Any] = {
        "mounts": list(_mounts(spec, home)),
        "user": "0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
        "network_mode": "host",  # judges and MLflow may serve on this machine
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", "label=disable"],
        "shm_size": "1g",
    }
    if memory:
        settings |= {"mem_limit": memory, "memswap_limit": memory}
    if gpu:
        settings["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return settings


def _mounts(spec: "Spec", home: Path) -> Iterator[Mount]:
    """The home, and what the spec and the environment name outside it."""
    yield _bound(home, str(home))
    named = {uri.removeprefix("file://") for uri in spec.snapshot.uris() if _is_path(uri)}
    if key := os.environ.get(KEY_FILE):
        named.add(str(Path(key).resolve()))
    for path in sorted(named):
        if Path(path).exists() and not Path(path).is_relative_to(home):
            yield _bound(Path(path), path, read_only=True)
    for package in sorted(_packages(spec)):
        found = importlib.util.find_spec(package)
        for place in (found and found.submodule_search_locations) or ():
            yield _bound(Path(place), f"{_PACKAGES}/{package}", read_only=True)
            break


def _check_tracking(home: Path) -> None:
    """Whether MLflow's store, where the user names one, can be seen from inside."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    where = urlsplit(uri)
    if where.scheme not in ("", "file", "sqlite") or not uri:
        return
    if not Path("/" + where.path.lstrip("/")).resolve().is_relative_to(home):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI {uri} lies outside the home {home}, which is all that containers "
            "can write to; unset it, name a server, or run without --on containers"
        )


def _is_path(uri: str) -> bool:
    return uri.startswith("file://") or ("://" not in uri and not uri.startswith("models:/"))


def _packages(spec: "Spec") -> set[str]:
    """Those that a model comes from: package://PACKAGE/FILE."""
    scheme = "package://"
    uris = [uri for uri in spec.snapshot.uris() if uri.startswith(scheme)]
    return {uri.removeprefix(scheme).partition("/")[0] for uri in uris}


def _bound(source: Path, target: str, *, read_only: bool = False) -> Mount:
    return Mount(target=target, source=str(source), type="bind", read_only=read_only)


def _environment(spec: "Spec") -> Iterator[tuple[str, str]]:
    """What steps on this machine would inherit, as far as they read it."""
    pinned = spec.snapshot
    sources = (*pinned.sources, *pinned.replay, *pinned.evaluation_sets, *pinned.answers)
    secrets = {each.api_key_env for each in endpoints_of(spec)}
    secrets |= {each.query_env for each in sources}
    for name, value in os.environ.items():
        if name in _THEIRS | secrets or name.startswith(_OURS):
            yield name, value
