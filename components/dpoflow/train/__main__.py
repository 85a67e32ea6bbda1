"""One training process of several: `python -m dpoflow.train JOB.json`.

torchrun and a TrainJob start it. Its error, if it is the first, is left for whoever did.
"""

import sys
from pathlib import Path

from dpoflow.contracts.errors import DpoflowError
from dpoflow.state.imports import unswept
from dpoflow.state.lifeline import tie_to_runner
from dpoflow.state.machine import set_thread_defaults
from dpoflow.train.outcome import Job, leave_error


def main(path: Path) -> int:
    """Train as the job of that path says, and end with the exit code that says who must act."""
    tie_to_runner()  # before torch, which takes long to import
    set_thread_defaults()
    job = Job.model_validate_json(path.read_text("utf-8"))
    with unswept():
        from dpoflow.train.processes import is_of_another
        from dpoflow.train.work import work
    try:
        work(job)
    except DpoflowError as error:
        leave_error(job, error)
        return error.exit_code
    except Exception as error:  # a bug of ours, or of another process: torchrun sees it, too
        if not is_of_another(error):
            leave_error(job, error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
