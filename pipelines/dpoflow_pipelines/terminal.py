"""What commands have in common: where they print, options that several take.

Gives   `standard_console`; `Sets`, `Images`
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one knob of the spec; repeatable."),
]
Images = Annotated[
    Path | None, typer.Option(help="A lock of built images; infra/images/images.lock if absent.")
]


def standard_console() -> Console:
    """Standard output: wrapped for a terminal, one line a line for a file or a pipe."""
    # A judge called llm:m:… is no emoji.
    return Console(file=sys.stdout, emoji=False, soft_wrap=not sys.stdout.isatty())
