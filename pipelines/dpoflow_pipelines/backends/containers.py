"""Run a compiled DAG on this machine, one container a task: kfp.local, by podman or docker.

Reads   a compiled pipeline and its arguments
Gives   `in_containers`: how `run_spec` runs a spec there
Not     the engine (engines.py), what a container sees (seen_inside.py), making images
        (infra/images), what became of the tasks (laptop.py reads their records)

A container's root is read-only, it has no capabilities that its user would not use, and its files
belong to whoever runs the command.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker
from docker import errors
from docker.types import DeviceRequest

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.images import CPU, GPU
from dpoflow.state.lifeline import RUNNER_LOCK
from dpoflow.state.machine import has_gpu
from dpoflow.state.step import code_digest
from dpoflow.state.surroundings import RUN_DIR
from dpoflow_pipelines.backends.engines import engine, lost
from dpoflow_pipelines.backends.laptop import (
    ALWAYS,
    Runner,
    TaskFailed,
    handled_by,
    run_dag,
)
from dpoflow_pipelines.backends.seen_inside import (
    bound,
    check_tracking,
    environment,
    mounts,
    own_secrets,
)

if TYPE_CHECKING:
    from kfp.local.status import Status

    from dpoflow.contracts.spec import Spec

LABEL = "io.dpoflow.run"
"""On a container: the folder of the run that it works for."""
_TMP = "/tmp"  # noqa: S108  # where our images write, and nowhere else
_SCRATCH = "scratch-"
"""How the folders of a run begin that are that place inside, each for one attempt."""
_KILLED = 128 + signal.SIGKILL


@dataclass(frozen=True)
class Containers:
    """What every container of a run is made with."""

    client: docker.DockerClient
    spec: "Spec"
    home: Path
    images: Mapping[str, str]
    """What a DAG calls an image to its id on this machine."""
    settings: Mapping[str, Any]
    """As docker's `run` takes them."""
    ended: dict[str, str] = field(default_factory=dict)
    """Task to how its last container ended, where that was badly."""
    gone: list[str] = field(default_factory=list)
    """What the engine said as it went away."""

    def run(
        self, ir: Path, arguments: Mapping[str, str], run_dir: Path, environment: Mapping[str, str]
    ) -> None:
        """A `Runner`. No container of the run is left; ServiceUnavailable if its engine goes."""
        from kfp import local
        from kfp.local import docker_task_handler

        told = {**ALWAYS, **environment, RUN_DIR: str(run_dir), RUNNER_LOCK: str(run_dir / "lock")}
        runner = local.DockerRunner(
            environment=told, labels={LABEL: str(run_dir)}, **dict(self.settings)
        )
        try:
            self._remove_all(run_dir)  # of a runner that was killed
        except lost as error:
            raise ServiceUnavailable(f"the container engine failed: {error}") from None
        for left in run_dir.glob(f"{_SCRATCH}*"):
            shutil.rmtree(left)
        try:
            attempt = functools.partial(_Attempt, self)
            with handled_by(docker_task_handler, "DockerTaskHandler", attempt):
                run_dag(ir, arguments, run_dir=run_dir, runner=runner, ended=self.ended)
        except TaskFailed:
            if self.gone:
                raise ServiceUnavailable(
                    f"the container engine went away: {self.gone[-1]}; the same command continues"
                ) from None
            raise
        finally:
            with contextlib.suppress(*lost):
                self._remove_all(run_dir)

    def _remove_all(self, run_dir: Path) -> None:
        ours = {"label": f"{LABEL}={run_dir}"}
        for each in self.client.containers.list(all=True, filters=ours, ignore_removed=True):
            _remove(each)


class _Attempt:
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
        given = dict(zip(full_command[-4::2], full_command[-3::2], strict=True))
        component = given["--function_to_execute"].replace("_", "-")  # as kfp calls it
        inputs = json.loads(given["--executor_input"])["inputs"].get("parameterValues", {})
        self._name = component + inputs.get("suffix", "")
        secrets, files = own_secrets(how.spec, component)
        self._settings = {
            **runner.container_run_args,
            "environment": {**environment(), **secrets, **(env_vars or {})},
        }
        self._mounts = [*mounts(how.spec, how.home), *files]

    def run(self) -> "Status":
        """To its end; what it printed goes to our standard output."""
        from kfp.local.status import Status

        run_dir = self._settings["labels"][LABEL]
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=_SCRATCH) as scratch:
            badly = self._ended_badly(Path(scratch))
        if badly is None:
            self._how.ended.pop(self._name, None)
            return Status.SUCCESS
        print(f"the container of {self._name} {badly}")  # noqa: T201  # the run's log
        self._how.ended[self._name] = badly
        return Status.FAILURE

    def _ended_badly(self, scratch: Path) -> str | None:
        seen, container = [*self._mounts, bound(scratch, _TMP)], None
        try:
            container = self._how.client.containers.run(
                self._image, self._command, detach=True, mounts=seen, **self._settings
            )
            for line in container.logs(stream=True):
                print(line.decode("utf-8", "replace"), end="")  # noqa: T201  # the run's log
            code = container.wait()["StatusCode"]
            container.reload()
            killed = container.attrs["State"].get("OOMKilled", False) or code == _KILLED
        except errors.NotFound:
            return "is gone: somebody removed it"
        except lost as error:
            self._how.gone.append(str(error))
            return f"was lost by its engine: {error}"
        finally:
            if container is not None:
                _remove(container)
        if code and killed:  # not every engine tells the kernel's kills from others
            limit = self._settings.get("mem_limit")
            most = f" (--memory {limit})" if limit else ""
            return f"was killed: by somebody, or for want of memory{most}"
        return f"ended with {code}" if code else None


@contextlib.contextmanager
def in_containers(
    specs: Sequence["Spec"], home: Path, *, memory: str | None = None
) -> Iterator[Runner]:
    """How `specs`, the points of one run, are run in containers of at most `memory` each (8g).

    Raises ConfigError where there is no engine or no image, or the spec asks for what is in no
    image; ServiceUnavailable where an engine does not answer.
    """
    check_memory(memory)
    check_tracking(home)
    gpu = has_gpu()
    for spec in specs:
        _check_spec(spec, gpu=gpu)
    with engine() as client:
        try:
            how = Containers(
                client,
                specs[0],  # points differ in what they train with, not in what they read
                home,
                _images(client, gpu=gpu),
                _settings(client, memory, gpu=gpu),
            )
        except lost as error:
            raise ServiceUnavailable(f"the container engine failed: {error}") from None
        yield how.run


def check_memory(memory: str | None) -> None:
    """Raises ConfigError where it is no size."""
    try:
        most = docker.utils.parse_bytes(memory or "1g")
    except errors.DockerException:
        most = 0
    if most <= 0:
        raise ConfigError(f"--memory {memory} is no size; give one such as 8g")


def _check_spec(spec: "Spec", *, gpu: bool) -> None:
    """What no image has is told now, and not after hours."""
    wanted = {
        "train.backend: trainjob": spec.train.backend == "trainjob",
        "train.compile": spec.train.compile,
        "train.lora.bits without a GPU": spec.train.lora.bits is not None and not gpu,
        "a suite of kind harness": any(each.kind == "harness" for each in spec.evaluate.suites),
    }
    if asked := [name for name, is_so in wanted.items() if is_so]:
        raise ConfigError(
            f"{', '.join(asked)}: our images have not what that takes; leave it out, or run "
            "without --on containers"
        )


def _images(client: docker.DockerClient, *, gpu: bool) -> dict[str, str]:
    """Without a GPU the smaller image does all: the steps are the same in both."""
    found = {}
    for name, here in {CPU: CPU, GPU: GPU if gpu else CPU}.items():
        target = "gpu" if here == GPU else "cpu"
        for spelt in (here, f"localhost/{here}"):  # as podman names what was built here
            with contextlib.suppress(errors.ImageNotFound):
                found[name] = str(client.images.get(spelt).id)
                break
        else:
            raise ConfigError(
                f"the image {here} is not on this machine; make it with: make images "
                f"ARGS={target} (or name in DOCKER_HOST the engine that has it)"
            )
    for image in set(found.values()):
        told = client.containers.run(image, ["python3", "-c", _DIGEST], remove=True)
        if told.decode().strip() != code_digest():
            raise ConfigError(
                "the image on this machine was made of other sources than these, so it would do "
                "other work than is asked for; make images again"
            )
    return found


_DIGEST = "from dpoflow.state.step import code_digest; print(code_digest())"


def _settings(client: docker.DockerClient, memory: str | None, *, gpu: bool) -> dict[str, Any]:
    # Without root's rights an engine gives the container's root the rights of whoever started it.
    rootless = any("rootless" in each for each in client.info().get("SecurityOptions") or ())
    root = rootless or os.getuid() == 0
    settings: dict[str, Any] = {
        "user": "0:0" if root else f"{os.getuid()}:{os.getgid()}",
        "group_add": [] if root else [str(each) for each in os.getgroups()],
        "network_mode": "host",  # judges and MLflow may serve on this machine
        "read_only": True,
        "cap_drop": ["ALL"],
        "cap_add": ["DAC_OVERRIDE"] if root else [],  # root reads and writes what others own
        "security_opt": ["no-new-privileges", "label=disable"],
        "shm_size": "1g",
    }
    if memory:
        settings |= {"mem_limit": memory, "memswap_limit": memory}
    if gpu:
        settings["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return settings


def _remove(container: Any) -> None:
    with contextlib.suppress(*lost):
        container.remove(force=True)
