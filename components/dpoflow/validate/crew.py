"""Processes that look at rows, as many as there are processors; none for a small file.

Reads   batches of rows
Gives   `Crew`: the same as one `Examiner`, in the same order, sooner
Not     what is looked at: see row.py
"""

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from pathlib import Path
from typing import Self

from dpoflow.contracts.errors import ServiceUnavailable
from dpoflow.contracts.spec import ValidateConfig
from dpoflow.state.lifeline import tie_to_parent
from dpoflow.state.machine import processors
from dpoflow.texts.contamination import Evaluations
from dpoflow.validate.row import Batch, Columns, Examiner

_FEW = 4
"""Batches that are looked at sooner than a process has started."""
_AHEAD = 2
"""Batches that wait for each process: more would only take memory."""
_examiner: list[Examiner] = []
"""The one of this process, where it belongs to a crew."""


class Crew:
    """Started when there is enough to do, gone with the step."""

    def __init__(
        self, config: ValidateConfig, tokenizer: Path | None, evaluations: Evaluations
    ) -> None:
        self._for_each = (config, tokenizer, evaluations)
        self._alone: Examiner | None = None
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def look_at(self, batches: Iterator[Batch]) -> Iterator[list[Columns]]:
        """The columns of each batch, in order."""
        first = list(islice(batches, _FEW + 1))
        if len(first) <= _FEW or processors() == 1:
            self._alone = self._alone or Examiner(*self._for_each)
            yield from map(self._alone, chain(first, batches))
        else:
            yield from self._together(chain(first, batches))

    def _together(self, batches: Iterable[Batch]) -> Iterator[list[Columns]]:
        pool = self._pool = self._pool or ProcessPoolExecutor(
            processors(),
            multiprocessing.get_context("spawn"),  # a fork would copy locks that threads hold
            initializer=_begin,
            initargs=self._for_each,
        )
        waiting = deque[Future[list[Columns]]]()
        try:
            for batch in batches:
                waiting.append(pool.submit(_look, batch))
                if len(waiting) > _AHEAD * processors():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ServiceUnavailable(
                "a process that looked at rows was killed, as when memory runs out; run again, "
                "with more memory if it happens again"
            ) from None


def _begin(config: ValidateConfig, tokenizer: Path | None, evaluations: Evaluations) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread each: the processors are taken
    tie_to_parent()
    _examiner.append(Examiner(config, tokenizer, evaluations))


def _look(batch: Batch) -> list[Columns]:
    return _examiner[0](batch)
