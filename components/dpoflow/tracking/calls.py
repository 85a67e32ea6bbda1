"""What models behind endpoints were asked: templates in the prompt registry, calls as traces.

Reads   MLFLOW_TRACKING_URI and the step's own run (step_run.py); without them nothing is told
Gives   `register_templates`, `Calls`
Not     asking (endpoints/)
"""

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dpoflow.tracking.settings import quiet_mlflow
from dpoflow.tracking.step_run import EXPERIMENT, STEP_RUN

if TYPE_CHECKING:
    from dpoflow.endpoints.cache import Reply, Request


def register_templates(templates: Iterable[tuple[str, str]]) -> None:
    """(id, text) of each template, as a prompt `dpoflow-NAME` whose alias is the text's digest.

    A text that is there already is not registered again.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    quiet_mlflow()
    from mlflow import MlflowClient

    client = MlflowClient()
    for name_and_digest, text in sorted(set(templates)):
        name, _, digest = name_and_digest.partition("@")
        prompt, alias = f"dpoflow-{name}", f"sha256-{digest}"
        if client.load_prompt(f"prompts:/{prompt}@{alias}", allow_missing=True) is None:
            # MLflow's placeholders have two braces, ours one.
            twice = re.sub(r"(?<!\{)\{(\w+)\}(?!\})", r"{{\1}}", text)
            made = client.register_prompt(prompt, twice, tags={"sha256": digest})
            client.set_prompt_alias(prompt, alias, made.version)


class Calls:
    """Tells MLflow of a share of the answers that were paid for; `flush` before the step ends."""

    def __init__(self, share: float) -> None:
        self._share = share if os.environ.get("MLFLOW_TRACKING_URI") else 0.0
        self._client: Any = None

    def __call__(self, request: "Request", reply: "Reply", seconds: float) -> None:
        """One answer; which ones are told is up to the request alone."""
        if int(request.key[:8], 16) / 16**8 >= self._share:
            return
        if self._client is None:
            quiet_mlflow()
            from mlflow import MlflowClient

            self._client = MlflowClient()
        with suppress(Exception):  # a picture of the work, never a reason to lose it
            now = time.time_ns()
            span = self._client.start_trace(
                f"{request.model}: {request.template}",
                span_type="CHAT_MODEL",
                inputs={"messages": list(request.messages), **request.parameters},
                tags={"dpoflow.request": request.key, "dpoflow.template": request.template},
                experiment_id=os.environ.get(EXPERIMENT),
                start_time_ns=now - int(seconds * 1e9),
                run_id=os.environ.get(STEP_RUN),
            )
            self._client.end_trace(
                span.trace_id,
                outputs={"text": reply.text, "finish_reason": reply.finish_reason},
                attributes={
                    "tokens_read": reply.tokens_read,
                    "tokens_written": reply.tokens_written,
                },
                end_time_ns=now,
            )

    def flush(self) -> None:
        """Until what was told has arrived."""
        if self._client is not None:
            import mlflow

            mlflow.flush_trace_async_logging()
