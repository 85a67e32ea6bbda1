"""What a container of a run sees of this machine: folders, files, variables.

Reads   a spec, this process's environment
Gives   `mounts`, `environment`, `own_secrets`; `check_tracking`
Not     running (containers.py)

Only what our code and its libraries read is passed on, and a key only to the task that uses it:
whoever may ask the engine can read a container's variables.
"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from docker.types import Mount

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.spec import REGISTRY
from dpoflow.registry.signature import KEY_FILE
from dpoflow.sources.files import local_path
from dpoflow_pipelines.placement import secrets_of

if TYPE_CHECKING:
    from dpoflow.contracts.spec import Spec

PACKAGES = "/opt/dpoflow/lib/python3.11/site-packages"
"""Of our images."""
VARIABLES = (
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT", "MLFLOW_S3_ENDPOINT_URL"),
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_PROFILE", "AWS_ROLE_ARN", "AWS_SESSION_TOKEN"),
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("OMP_NUM_THREADS", "DPOFLOW_OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
"""Of every task."""
FILES = {
    "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials",
    "AWS_CONFIG_FILE": "~/.aws/config",
    "AWS_WEB_IDENTITY_TOKEN_FILE": None,
    "AWS_CA_BUNDLE": None,
    "HF_TOKEN_PATH": "~/.cache/huggingface/token",
    "MLFLOW_TRACKING_SERVER_CERT_PATH": None,
    "REQUESTS_CA_BUNDLE": None,
    "SSL_CERT_FILE": None,
}
"""Variables of every task that name a file, and where it is when they do not."""


def bound(source: Path, target: str, *, read_only: bool = False) -> Mount:
    """A folder or file of this machine, seen inside as `target`."""
    return Mount(target=target, source=str(source), type="bind", read_only=read_only)


def mounts(spec: "Spec", home: Path) -> Iterator[Mount]:
    """The home, and what the spec and the environment name outside it, which is read-only."""
    yield bound(home, str(home))
    named = {str(file) for file in _files().values()}
    for uri in spec.snapshot.uris():
        if "://" in uri and not uri.lower().startswith("file://"):
            continue
        if not uri.startswith(REGISTRY):
            named.update(map(str, _with_what_it_links_to(local_path(uri))))
    for path in sorted(named):
        if Path(path).exists() and not Path(path).is_relative_to(home):
            yield bound(Path(path), path, read_only=True)
    for package in sorted(_packages(spec)):
        found = importlib.util.find_spec(package)
        for place in (found and found.submodule_search_locations) or ():
            yield bound(Path(place), f"{PACKAGES}/{package}", read_only=True)
            break


def _with_what_it_links_to(path: Path) -> Iterator[Path]:
    """A folder of Hugging Face's cache is links to files beside it."""
    yield path
    if path.is_dir():
        for each in path.rglob("*"):
            if each.is_symlink():
                yield each.resolve().parent


def _packages(spec: "Spec") -> set[str]:
    """Those that a model comes from: package://PACKAGE/FILE. Ours are in the image."""
    scheme = "package://"
    uris = [uri for uri in spec.snapshot.uris() if uri.startswith(scheme)]
    named = {uri.removeprefix(scheme).partition("/")[0] for uri in uris}
    return {each for each in named if not each.startswith("dpoflow")}


def _files() -> dict[str, Path]:
    """Variable to the file that it names, or that is where it is looked for without."""
    named = {name: os.environ.get(name) or usual for name, usual in FILES.items()}
    paths = {name: Path(given).expanduser().resolve() for name, given in named.items() if given}
    return {name: path for name, path in paths.items() if path.is_file()}


def environment() -> dict[str, str]:
    """Of every task."""
    found = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return found | {name: str(path) for name, path in _files().items()}


def own_secrets(spec: "Spec", component: str) -> tuple[dict[str, str], list[Mount]]:
    """Variables and files that one task alone is given, as on a cluster: see placement.py."""
    uses = list(secrets_of(spec, component))
    names = {name for use in uses for name in use.env}
    found = {name: os.environ[name] for name in sorted(names) if name in os.environ}
    key = os.environ.get(KEY_FILE)
    if key is None or not any(use.path for use in uses):
        return found, []
    path = Path(key).resolve()
    return found | {KEY_FILE: str(path)}, [bound(path, str(path), read_only=True)]


def check_tracking(home: Path) -> None:
    """Whether MLflow's store, where the user names a file, can be seen from inside.

    Raises ConfigError.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    scheme = urlsplit(uri).scheme
    if not uri or scheme not in ("", "file", "sqlite") or uri.startswith("databricks"):
        return
    path = Path(uri.removeprefix("sqlite:///").removeprefix("file://"))
    if not path.is_absolute() or not path.resolve().is_relative_to(home):
        raise ConfigError(
            f"MLFLOW_TRACKING_URI {uri} is no absolute path inside the home {home}, which is all "
            "that containers write to; unset it, name a server, or run without --on containers"
        )
