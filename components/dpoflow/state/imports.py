"""Imports of what is heavy: torch and transformers make half a million objects that all stay.

Gives   `unswept`, around such an import
Not     when it is done: `later` in step.py, and inside the functions that need it
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def unswept() -> Iterator[None]:
    """No collection meanwhile, and none of what came goes through one later, at the exit either."""
    was_on, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # freezing again would only keep garbage
            gc.freeze()
        if was_on:
            gc.enable()
