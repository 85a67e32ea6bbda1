"""A fake of the Kubernetes API, over a real socket: objects that lie at their paths, read only.

What a real cluster has and this has not: everything that happens by itself, and who may see what,
but for the paths that a test says are forbidden.
"""

import json
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.fakes.served import Served


class FakeObjects(Served):
    """`objects` is path to what lies there: an object, a text such as a log, or a status.

    A list of objects with labels is asked by `labelSelector`, as far as `key` and `key=value` go.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, Any] = {}
        self._folder = folder
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                found = fake.objects.get(asked.path, 404)
                status = found if isinstance(found, int) else 200
                for selector in parse_qs(asked.query).get("labelSelector", ()):
                    found = {"items": [each for each in found["items"] if _fits(each, selector)]}
                plain = isinstance(found, str)
                text = found if plain else json.dumps({} if isinstance(found, int) else found)
                text = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/plain" if plain else "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                """Silence."""

        super().__init__(Handler)

    def kubeconfig(self) -> Path:
        """A file that points kubectl and its kin here."""
        path = self._folder / "kubeconfig"
        page = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {"token": "not-a-secret"}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "me"}}],
        }
        path.write_text(json.dumps(page))
        return path


def _fits(found: dict[str, Any], selector: str) -> bool:
    labels = found["metadata"]["labels"]
    asked = [each.partition("=") for each in selector.split(",")]
    return all(
        key in labels and (not equals or labels[key] == value) for key, equals, value in asked
    )
