"""What was answered batch by batch, on disk before it counts, so that a kill loses one batch.

    {"request": …}                     what was asked, by its digest
    {"batch": 0, "answers": […]}       one line a finished batch

Reads   such a file, as far as it is whole and of the same request
Gives   `Batches`
Not     what an answer is: whoever asks gives and takes JSON
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpoflow.state.events import Events


class Batches:
    """JSON lines: the request, then one finished batch each."""

    def __init__(self, path: Path, request: str, events: Events, phase: str) -> None:
        self._path, self._request, self._events, self._phase = path, request, events, phase

    def read(self, sizes: Sequence[int]) -> list[list[Any]]:
        """The batches that are there from the first on; a torn or foreign tail is cut off."""
        lines = self._lines()
        if not lines or lines[0] != self._head:
            if lines:
                self._say("the answers kept here are another request's: starting over")
            self._begin()
            return []
        done: list[list[Any]] = []
        for place, line in enumerate(lines[1 : 1 + len(sizes)]):
            record = json.loads(line)
            if record["batch"] != place or len(record["answers"]) != sizes[place]:
                break
            done.append(record["answers"])
        self._cut(lines[: 1 + len(done)])
        if done:
            self._say(f"continuing after {sum(map(len, done))} answers made earlier")
        return done

    def append(self, place: int, answers: Sequence[Any]) -> None:
        """Keep batch number `place`."""
        self._write("ab", self._line({"batch": place, "answers": answers}))

    @property
    def _head(self) -> bytes:
        return self._line({"request": self._request}).rstrip(b"\n")

    @staticmethod
    def _line(record: dict[str, Any]) -> bytes:
        return json.dumps(record, ensure_ascii=True).encode() + b"\n"

    def _lines(self) -> list[bytes]:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return []
        return content[: content.rfind(b"\n") + 1].splitlines()

    def _begin(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._write("wb", self._head + b"\n")

    def _cut(self, lines: Sequence[bytes]) -> None:
        os.truncate(self._path, sum(len(line) + 1 for line in lines))

    def _write(self, mode: str, content: bytes) -> None:
        with self._path.open(mode) as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())

    def _say(self, message: str) -> None:
        self._events.say(message, phase=self._phase, passing=True)
