"""A promoter in a process of its own, forked from one that has imported everything already.

Gives   `started`: one round of it at work, which may be killed
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["dpoflow.registry.promotion", "mlflow.utils.rest_utils"])


def started(environment: Mapping[str, str]) -> ForkServerProcess:
    """Ends with 0 where nothing that was due failed."""
    process = _CONTEXT.Process(target=_one_round, args=(dict(environment),))
    process.start()
    return process


def _one_round(environment: dict[str, str]) -> None:
    from dpoflow.registry.promotion import promote_due
    from dpoflow.registry.team import asked_team

    os.environ.update(environment)
    outcomes = promote_due(asked_team(), lambda line: None)
    failed = [f"{each.due.subject}: {each.error}" for each in outcomes if each.error]
    sys.stderr.write("\n".join(failed))
    sys.exit(1 if failed else 0)
