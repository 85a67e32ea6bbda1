"""The Kubernetes API, as far as a person's command asks it: questions only.

Reads   KUBECONFIG or ~/.kube/config, or a pod's service account
Gives   `KubeApi`
Not     TrainJobs, which a step makes by itself (dpoflow.train.trainjob)
"""

import os
from typing import Any

from dpoflow.contracts.errors import ConfigError, ServiceUnavailable

TIMEOUT_S = 15


class Forbidden(ConfigError):
    """One may not ask that."""


class KubeApi:
    """The cluster that the environment names."""

    def __init__(self) -> None:
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = False
        try:
            if os.environ.get("KUBERNETES_SERVICE_HOST") and not os.environ.get("KUBECONFIG"):
                config.load_incluster_config(client_configuration=settings)
            else:
                config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=settings)
        except config.ConfigException as error:
            raise ConfigError(
                f"no Kubernetes cluster is named ({error}); set KUBECONFIG to a file that kubectl "
                "works with"
            ) from None
        self.host = str(settings.host)
        self._client = client.ApiClient(settings)

    def get(self, path: str, **query: str) -> dict[str, Any] | None:
        """An object or a list; None for what is not there. Raises Forbidden, ServiceUnavailable."""
        found: dict[str, Any] | None = self._ask(path, "object", query)
        return found

    def pods(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        """Pods with these labels, the first that began first."""
        found = self.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=labels) or {}
        pods: list[dict[str, Any]] = found.get("items", [])
        return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))

    def log(self, namespace: str, pod: str, container: str) -> str:
        """What a container printed; empty where that is gone."""
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        return str(self._ask(path, "str", {"container": container}) or "")

    def _ask(self, path: str, kind: str, query: dict[str, str]) -> Any:
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            return self._client.call_api(
                path,
                "GET",
                query_params=list(query.items()),
                header_params={"Accept": "application/json"},
                response_type=kind,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
                _request_timeout=TIMEOUT_S,
            )
        except ApiException as error:
            if error.status == 404:  # HTTP's Not Found
                return None
            text = f"the cluster at {self.host} did not answer {path} (HTTP {error.status})"
            if error.status in (401, 403):
                raise Forbidden(f"{text}; ask for a role that may read it") from None
            if error.status == 400:  # a container that never started has no log
                return None
            raise ServiceUnavailable(f"{text}; try again later") from None
        except HTTPError as error:
            raise ServiceUnavailable(
                f"the cluster at {self.host} does not answer ({type(error).__name__}); see whether "
                "kubectl get nodes works"
            ) from None
