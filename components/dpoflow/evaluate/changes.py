"""What the candidate was made with that the champion was not.

Reads   manifests of both
Gives   `changes_since`
Not     how it shows in the result: that is the rest of the decision
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from dpoflow.contracts.manifest import Manifest

_NOTHING = "-"
_SHOWN = 12
"""Characters of a digest."""


def changes_since(champion: Manifest, candidate: Manifest) -> dict[str, tuple[str, str]]:
    """(champion's, candidate's) by knob of training, and by what each was made from.

    A champion that did not come from the registry tells nothing of itself: then everything is new.
    """
    trained = champion.config.get("trained", {})
    before = dict(_told(trained.get("config", {}), trained.get("parents", {})))
    after = dict(_told(candidate.config, candidate.parents))
    return {
        name: (before.get(name, _NOTHING), after.get(name, _NOTHING))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def _told(config: Mapping[str, Any], parents: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    yield from ((f"made from {name}", digest[:_SHOWN]) for name, digest in parents.items())
    yield from _flat(config, "")


def _flat(config: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value)
