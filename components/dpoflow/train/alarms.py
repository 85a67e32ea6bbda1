"""What a person watching the curves would stop for, said once and in time.

Reads   the figures of each update (figures.py)
Gives   `Alarms` while a run goes on, with `Memory` across a kill; `alarms_of` afterwards:
        sentences, each at most once a run
Not     stopping: a run that looks odd may be meant
"""

from collections.abc import Callable, Mapping, Sequence

from dpoflow.contracts.base import Contract

Metrics = Mapping[str, float]

COLLAPSE = 1.0
"""Nats a token that chosen answers may become less likely by: their odds fell to a third."""

RUNAWAY = 0.5
"""Nats a token of k3 to the reference. Runs that learn stay far below a tenth."""

LONGER = 1.5
"""Times as long as rejected that chosen answers may be before length is the easier lesson."""

ENOUGH = 8
"""Updates after which lengths are compared: the pairs of one update are of like length."""

TOO_EASY = 3
"""Updates in a row, from the second on, in which no pair was wrong."""


class Memory(Contract):
    """What was seen so far."""

    first: dict[str, float] | None = None
    told: tuple[str, ...] = ()
    num_seen: int = 0
    num_perfect: int = 0
    chosen_tokens: float = 0.0
    rejected_tokens: float = 0.0


def alarms_of(metrics: Sequence[tuple[int, Metrics]]) -> tuple[str, ...]:
    """All that there is to say of a whole run, given as (update, figures), in order."""
    alarms = Alarms()
    return tuple(
        f"update {update}: {text}"
        for update, figures in metrics
        if "train/loss" in figures  # else a failing disk kept the held-out ones alone
        for text in alarms.of(figures)
    )


class Alarms:
    """Remembers the first update and what it has already said."""

    def __init__(self, memory: Memory | None = None) -> None:
        """`memory` is what an earlier attempt at the run remembered."""
        memory = memory or Memory()
        self._first: Metrics | None = memory.first
        self._told = set(memory.told)
        self._num_seen, self._num_perfect = memory.num_seen, memory.num_perfect
        self._tokens = {"chosen": memory.chosen_tokens, "rejected": memory.rejected_tokens}

    @property
    def memory(self) -> Memory:
        """All that a later attempt needs to go on watching."""
        return Memory(
            first=dict(self._first) if self._first else None,
            told=tuple(sorted(self._told)),
            num_seen=self._num_seen,
            num_perfect=self._num_perfect,
            chosen_tokens=self._tokens["chosen"],
            rejected_tokens=self._tokens["rejected"],
        )

    def of(self, metrics: Metrics) -> list[str]:
        """What there is to say of the newest update."""
        # Thumbs come one at a time: an update may have seen one kind of answer alone.
        if self._first is None and "train/chosen_tokens" in metrics:
            self._first = metrics
        first = self._first or metrics
        self._num_seen += 1
        means = {which: metrics.get(f"train/{which}_tokens", 0.0) for which in self._tokens}
        if all(means.values()):
            self._tokens = {which: self._tokens[which] + means[which] for which in means}
        if self._num_perfect == self._num_seen - 2 and metrics["train/reward_accuracy"] == 1.0:
            self._num_perfect += 1
        rules: dict[str, Callable[[Metrics, Metrics], str | None]] = {
            "collapse": _collapse,
            "runaway": _runaway,
            "longer": self._longer,
            "easy": self._easy,
        }
        fresh = {name: rule(first, metrics) for name, rule in rules.items()}
        said = {name: text for name, text in fresh.items() if text and name not in self._told}
        self._told |= said.keys()
        return list(said.values())

    def _easy(self, _first: Metrics, _now: Metrics) -> str | None:
        if self._num_perfect < TOO_EASY:
            return None
        return (
            f"no pair was wrong in updates 2 to {1 + TOO_EASY}: chosen and rejected can be told "
            "apart by something other than quality; look at the data before you trust the result"
        )

    def _longer(self, _first: Metrics, _now: Metrics) -> str | None:
        if self._num_seen < ENOUGH or not all(self._tokens.values()):
            return None
        ratio = self._tokens["chosen"] / self._tokens["rejected"]
        if 1 / LONGER <= ratio <= LONGER:
            return None
        return (
            f"chosen answers are {ratio:.1f} times as long as rejected ones: length will be "
            "learnt first; balance the pairs, or set train.loss: sigmoid_norm"
        )


def _collapse(first: Metrics, now: Metrics) -> str | None:
    if not all("train/chosen_tokens" in of for of in (first, now)):
        return None
    before, after = (of["train/chosen_logps"] / of["train/chosen_tokens"] for of in (first, now))
    if before - after <= COLLAPSE:
        return None
    return (
        f"chosen answers fell from {before:.2f} to {after:.2f} nats a token: the model unlearns "
        "what it should prefer; raise train.sft_weight or train.beta, or lower train.learning_rate"
    )


def _runaway(_first: Metrics, now: Metrics) -> str | None:
    moved = now.get("train/kl", 0.0)
    if moved <= RUNAWAY:
        return None
    return (
        f"the policy is {moved:.2f} nats a token from its reference; "
        "raise train.beta or lower train.learning_rate"
    )
