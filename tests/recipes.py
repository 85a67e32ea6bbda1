"""The recipes of pipelines/configs, and the rows that their pages show.

Gives   `NAMES`, `RECIPES`, `page`, `shown`, `rows`
"""

import json
import re
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parents[1] / "pipelines" / "configs" / "recipes"
NAMES = tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))

_BLOCK = re.compile(r"```(?P<kind>jsonl|csv)\n(?P<rows>.*?)```", re.DOTALL)
_FILE = re.compile(r"`((?:data/)?[\w./]+\.(?:jsonl|csv))`|uri: (thumbs\.jsonl)")


def page(name: str) -> str:
    return (RECIPES / f"{name}.md").read_text("utf-8")


def shown(name: str) -> dict[str, str]:
    """Each file that a page names, to the example that follows."""
    text, found = page(name), dict[str, str]()
    for block in _BLOCK.finditer(text):
        *_, last = _FILE.findall(text[: block.start()])
        found[next(filter(None, last))] = block["rows"]
    return found


def rows(name: str, file: str) -> list[dict[str, Any]]:
    """The example of JSON lines."""
    return [json.loads(line) for line in shown(name)[file].splitlines()]
