"""`dpoflow doctor`: whether this machine can run dpoflow, and what to do where it cannot.

Reads   the machine
Gives   `examine`; `show` for findings of others
"""

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.errors import ConfigError, DpoflowError
from dpoflow.state.files import writable_folder

_NEEDED = ("kfp", "mlflow", "torch", "transformers", "great_expectations", "pyarrow")
_DISK_GB = 4
_MEMORY_GB = 4

Finding = tuple[bool, str, str, str]
"""Whether it is fine, what, what was seen, what to do."""


def examine(console: Console, home: Path) -> int:
    """Print every finding of this machine; returns the exit code of `show`."""
    return show(console, _findings(home))


def show(console: Console, findings: Iterable[Finding]) -> int:
    """Print findings; returns the exit code: 0, or 2 if something must be mended."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("", "what", "seen", "to do"):
        table.add_column(column)
    fine = True
    for good, what, seen, todo in findings:
        fine = fine and good
        mark = "[green]ok[/]" if good else "[red]no[/]"
        table.add_row(mark, escape(what), escape(seen), "" if good else escape(todo))
    console.print(table)
    return 0 if fine else ConfigError.exit_code


def _findings(home: Path) -> Iterator[Finding]:
    version = sys.version_info
    yield (
        (3, 11) <= version[:2] < (3, 15),
        "Python",
        f"{version[0]}.{version[1]}.{version[2]}",
        "install Python 3.11 to 3.14, then make setup",
    )
    for package in _NEEDED:
        try:
            yield True, package, importlib.metadata.version(package), ""
        except importlib.metadata.PackageNotFoundError:
            yield False, package, "absent", "make setup"
    yield _home(home)
    free = shutil.disk_usage(next(p for p in (home, *home.parents) if p.exists())).free / 1e9
    yield (
        free >= _DISK_GB,
        "disk",
        f"{free:.0f} GB free",
        f"free {_DISK_GB} GB, or name another --home",
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield memory >= _MEMORY_GB, "memory", f"{memory:.0f} GB", f"the demo needs {_MEMORY_GB} GB"
    yield True, "processors", str(os.cpu_count()), ""
    yield _accelerator()
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    yield True, "MLflow", "a server of yours" if uri else "sqlite under the home", ""


def _home(home: Path) -> Finding:
    try:
        writable_folder(home, "the home")
    except DpoflowError as error:
        return False, "home", str(home), str(error)
    return True, "home", str(home), ""


def _accelerator() -> Finding:
    try:
        import torch
    except ImportError:
        return False, "GPU", "unknown", "make setup"
    if torch.cuda.is_available():
        return True, "GPU", torch.cuda.get_device_name(0), ""
    return True, "GPU", "none: models run on the processor", ""
