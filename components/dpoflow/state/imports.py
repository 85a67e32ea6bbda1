"""Imports of what is heavy: torch and transformers make half a million objects that all stay.

Gives   `unswept`, around such an import; `load`, of a module that would bring along what we do not
        use
Not     when it is done: `later` in step.py, and inside the functions that need it
"""

import gc
import importlib
import sys
from collections.abc import Collection, Iterator
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


def load(module: str, *, without: Collection[str]) -> None:
    """Import `module` as if the packages of `without` were not installed.

    For a library that imports others only because they are there, and works where they are not.
    It may remember that they are not, for as long as the process lives; we may import them after.
    """
    if module in sys.modules:
        return
    with unswept():
        try:
            with _absent(without):
                importlib.import_module(module)
        except ImportError:  # it cannot do without, or was told earlier that they are there
            importlib.import_module(module)


@contextmanager
def _absent(packages: Collection[str]) -> Iterator[None]:
    """Inside, no import finds `packages`: None in `sys.modules` is Python's own word for that."""
    there = {name: sys.modules[name] for name in packages if name in sys.modules}
    nowhere: dict[str, None] = dict.fromkeys(packages)
    sys.modules.update(nowhere)  # type: ignore[arg-type]  # typeshed leaves None out
    try:
        yield
    finally:
        for name in packages:
            del sys.modules[name]
        sys.modules.update(there)
