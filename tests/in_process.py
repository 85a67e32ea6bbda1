"""kfp.local's subprocess runner without the subprocess: a DAG's tasks run in this process.

Each task of a run spends seconds on importing what the one before it imported; several small runs
spend minutes. The DAG, the components' bodies and kfp's executor are the real ones. What is lost:
the kernel between tasks, so nothing here may rest on how a task dies.

Gives   `tasks_in_this_process`
"""

import json
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

_MARK = "--executor_input"
"""The command of a lightweight component ends in: its code, this, its inputs, and its name."""


@contextmanager
def tasks_in_this_process() -> Iterator[None]:
    """As long as the context lasts."""
    with patch("kfp.local.subprocess_task_handler.run_local_subprocess", _run_here):
        yield


def _run_here(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
    """What the command would do; its exit status."""
    from kfp.dsl import utils
    from kfp.dsl.executor import Executor

    assert not env_vars, "no task of ours has any"
    at = full_command.index(_MARK)
    given = dict(zip(full_command[at::2], full_command[at + 1 :: 2], strict=True))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ephemeral_component.py").write_text(full_command[at - 1])
        module = utils.load_module("ephemeral_component", folder)
        function = getattr(module, given["--function_to_execute"])
        try:
            Executor(json.loads(given[_MARK]), function).execute()
        except SystemExit as stop:
            return int(stop.code or 0)
        except Exception:  # noqa: BLE001  # as the interpreter does at the end of a process
            traceback.print_exc(file=sys.stdout)
            return 1
    return 0
