"""Whether everything installed here is pinned, and pinned to what is installed.

Reads   constraints.txt beside this file, and the distributions this Python sees
Gives   one line and exit 0, or one line a fault and exit 1; `--add` writes missing pins instead
Not     installing: infra/local/set_up.py
"""

import re
import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parent / "constraints.txt"
OURS = "dpoflow"
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")
"""What a CUDA build of torch brings, and pins itself: each build others, by the same names."""


def canonical(name: str) -> str:
    """One spelling a distribution: `Flask_Cors` is `flask-cors`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Name to version of every `name==version` line."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    named = (line.partition("==") for line in lines if line)
    return {canonical(name.strip()): version.strip() for name, _, version in named}


def installed() -> dict[str, str]:
    """Name to public version of what the lock must pin; `2.13.0+cpu` counts as `2.13.0`."""
    found = {canonical(each.name): each.version for each in metadata.distributions()}
    return {
        name: version.partition("+")[0]
        for name, version in found.items()
        if name != OURS and not OF_TORCH.match(name)
    }


def faults(found: dict[str, str], pinned: dict[str, str]) -> list[str]:
    """One sentence for each distribution that is not the pinned one."""
    unpinned = [f"{name} {found[name]} is not pinned" for name in sorted(found.keys() - pinned)]
    both = sorted(found.keys() & pinned)
    differing = [
        f"{name} is {found[name]}, pinned is {pinned[name]}"
        for name in both
        if found[name] != pinned[name]
    ]
    return unpinned + differing


def add(found: dict[str, str], lock: Path) -> None:
    """Write a pin for each distribution that has none; the comments on top stay."""
    text = lock.read_text(encoding="utf-8")
    top = [line for line in text.splitlines() if line.startswith("#")]
    every = {**found, **pins(text)}
    body = [f"{name}=={version}" for name, version in sorted(every.items())]
    lock.write_text("\n".join([*top, *body, ""]), encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Check, or with `--add` write."""
    found = installed()
    if arguments == ["--add"]:
        add(found, LOCK)
    wrong = faults(found, pins(LOCK.read_text(encoding="utf-8")))
    if wrong:
        print(*wrong, f"\n{len(wrong)} faults: {LOCK.name} and this environment differ", sep="\n")
        print("mend it: rm -r .venv && make setup, or infra/locks/lock.py --add for new pins")
        return 1
    print(f"lock: all {len(found)} installed distributions are as {LOCK.name} pins them")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
