"""Where a command prints.

Gives   `standard_console`
"""

import sys

from rich.console import Console


def standard_console() -> Console:
    """Standard output: wrapped for a terminal, one line a line for a file or a pipe."""
    # A judge called llm:m:… is no emoji.
    return Console(file=sys.stdout, emoji=False, soft_wrap=not sys.stdout.isatty())
