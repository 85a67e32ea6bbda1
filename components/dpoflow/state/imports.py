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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType


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
    It may remember that they are not for as long as the process lives; we can import them after.
    What is loaded already stays as it is: other threads may be using it.
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
    """Inside, no import finds `packages`: None in `sys.modules` is Python's own word for that.

    See "The module cache" in the language reference, 5.3.1.
    """
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    absent = [name for name in packages if name not in modules]
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            if modules.get(name) is None:
                modules.pop(name, None)
