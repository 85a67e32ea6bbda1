"""Kubeflow Pipelines' API (v2beta1), as far as we ask it: with patience, and in our own words.

Reads   an endpoint; KF_PIPELINES_SA_TOKEN_PATH or DPOFLOW_KFP_TOKEN, where it asks who one is
Gives   `KfpApi`
Not     what is submitted (cluster.py, schedules.py)

kfp's own `Client` prints links, sleeps through five attempts at anything, 401 included, and reads
settings from the user's home. What it is made of, kfp-server-api, does none of that.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tenacity import RetryError, Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable
from dpoflow.tracking.settings import public

ENDPOINT = "KF_PIPELINES_ENDPOINT"
TOKEN, TOKEN_FILE = "DPOFLOW_KFP_TOKEN", "KF_PIPELINES_SA_TOKEN_PATH"
ATTEMPTS = 5
TIMEOUT_S = 30
PAGE = 100

Answer = TypeVar("Answer")
Page = Callable[[str], Any]


class NotThere(ConfigError):
    """Kubeflow has nothing of that id."""


class Away(ServiceUnavailable):
    """It did not answer, is busy, or somebody was quicker: what was asked may have been done."""


class KfpApi:
    """One server of Kubeflow Pipelines, and the namespace that one works in there."""

    def __init__(self, endpoint: str, namespace: str, *, pause_s: float = 1.0) -> None:
        import kfp_server_api as api

        self.endpoint, self._asked, self._pause_s = endpoint.rstrip("/"), namespace, pause_s
        settings = api.Configuration(host=self.endpoint)
        settings.retries = False  # urllib3's own would try again what may have happened
        if token := _token():
            settings.api_key = {"authorization": token}
            settings.api_key_prefix = {"authorization": "Bearer"}
        client = api.ApiClient(settings)
        self.models = api
        self.pipelines = api.PipelineServiceApi(client)
        self.uploads = api.PipelineUploadServiceApi(client)
        self.experiments = api.ExperimentServiceApi(client)
        self.runs = api.RunServiceApi(client)
        self.recurring = api.RecurringRunServiceApi(client)
        asked = api.HealthzServiceApi(client).healthz_service_get_healthz_with_http_info
        health, _, headers = self.ask("tell its health", asked)
        if "json" not in (kind := str(headers.get("Content-Type", ""))):
            raise ConfigError(
                f"{public(self.endpoint)} answers with {kind or 'something'} and not as Kubeflow "
                f"Pipelines does: a page to log in at, perhaps; name the API itself ({ENDPOINT} or "
                f"--endpoint), and give {TOKEN} where it asks who you are"
            )
        self.namespace: str | None = namespace if health.multi_user else None
        """None where the server has one namespace for everybody: its own."""

    def once(self, what: str, question: Callable[..., Answer], *given: Any, **more: Any) -> Answer:
        """One request. Raises Away, or ConfigError for what asking again does not mend."""
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return question(*given, _request_timeout=TIMEOUT_S, **more)
        except ApiException as error:
            raise self._told(what, error.status or 0, error.reason, error.body) from None
        except HTTPError as error:
            raise Away(
                f"Kubeflow Pipelines at {public(self.endpoint)} did not {what} "
                f"({type(error).__name__}); see whether it is there ({ENDPOINT} or --endpoint), "
                "then give the same command again"
            ) from None

    def patiently(self, deed: Callable[[], Answer]) -> Answer:
        """A deed that may be done twice without harm, tried again while the server is away."""
        trying = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, Away)),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=self._pause_s, max=30 * self._pause_s),
            reraise=True,
        )
        try:
            return trying(deed)
        except RetryError as error:  # never: the last error itself is raised
            raise AssertionError from error

    def ask(self, what: str, question: Callable[..., Answer], *given: Any, **more: Any) -> Answer:
        """A question, asked again while the server is away."""
        return self.patiently(lambda: self.once(what, question, *given, **more))

    def all_pages(
        self, what: str, question: Callable[..., Any], field: str, **more: Any
    ) -> Iterator[Any]:
        """Every item of a list that comes in pages."""
        token = ""
        while True:
            page = self.ask(what, question, page_token=token, page_size=PAGE, **more)
            yield from getattr(page, field) or ()
            token = page.next_page_token or ""
            if not token:
                return

    def _told(
        self, what: str, status: int, reason: str | None, body: str | bytes | None
    ) -> ConfigError | Away:
        """An HTTP status in our words. What the server says is shown, its headers are not."""
        text = f"Kubeflow Pipelines at {public(self.endpoint)} did not {what}"
        said = f"{_message(body) or reason} (HTTP {status})"
        if status == 401:
            return ConfigError(
                f"{text}: it does not know you; set {TOKEN}, or {TOKEN_FILE} to a file with a "
                "service account's token"
            )
        if status == 403:
            return ConfigError(
                f"{text}: {said}; you need a role in namespace {self._asked}, or name another with "
                "--namespace"
            )
        if status == 409:  # HTTP's Conflict: somebody was quicker, and what they made is looked for
            return Away(f"{text}: {said}; somebody makes the same at this moment, try again")
        if status == 404:
            return NotThere(f"{text}: {said}")
        if status in (0, 408, 429) or status >= 500:
            return Away(f"{text}: {said}; give the same command again later")
        return ConfigError(f"{text}: {said}")


def named(name: str) -> str:
    """The filter of a list for what has this name."""
    predicate = {"operation": "EQUALS", "key": "display_name", "stringValue": name}
    return json.dumps({"predicates": [predicate]})


def endpoint_of(given: str | None) -> str:
    """Where Kubeflow Pipelines is. Raises ConfigError."""
    endpoint = given or os.environ.get(ENDPOINT, "")
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"Kubeflow Pipelines' address is {endpoint or 'not set'}; name it with --endpoint or "
            f"{ENDPOINT}, such as http://127.0.0.1:8888 after: kubectl port-forward -n kubeflow "
            "svc/ml-pipeline 8888:8888"
        )
    return endpoint


def _token() -> str | None:
    if path := os.environ.get(TOKEN_FILE):
        try:
            return Path(path).read_text("utf-8").strip()
        except OSError as error:
            raise ConfigError(f"{TOKEN_FILE} {path} cannot be read ({error.strerror})") from None
    return os.environ.get(TOKEN) or None


def _message(body: str | bytes | None) -> str:
    """What an error of the API says for people."""
    try:
        told = json.loads(body or "")
    except ValueError:
        return ""
    return (
        str(told.get("message") or told.get("error") or "")[:500] if isinstance(told, dict) else ""
    )
