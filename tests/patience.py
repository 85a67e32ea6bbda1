"""How long a test waits for what must happen: only a hang takes longer, however busy the machine.

Gives   `PATIENCE_S`, `wait_until`
"""

import time
from collections.abc import Callable

PATIENCE_S = 600


def wait_until(is_so: Callable[[], object], what: str, *, every_s: float = 0.02) -> None:
    """Return once it is; AssertionError, with `what` never came, where it hangs."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(every_s)
