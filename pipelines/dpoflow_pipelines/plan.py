"""`dpoflow plan`: what a training would need, before anything is spent.

Reads   a spec, its data and its model's config; no weights
Gives   `plan_specs`, `measured_here`, `show_plans`
Not     the arithmetic (dpoflow.train.estimate)

Of the machine's time only training is counted; what judges and writers behind endpoints would be
paid is told by spending.py.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import Item, PreferencePair, Prompt, Rating
from dpoflow.contracts.spec import REGISTRY, Spec
from dpoflow.state.events import seconds_text
from dpoflow_pipelines.rows import rows_of

if TYPE_CHECKING:
    from dpoflow.train.estimate import Estimate, Lengths, Machine

SAMPLE = 256
"""Pairs whose lengths are measured in tokens; the rest is only counted."""

HERE = "this machine"
_GIB, _MIB = 2**30, 2**20

_NO_MATTER = {
    *("beta", "label_smoothing", "gamma", "desirable_weight", "undesirable_weight", "sft_weight"),
    *("learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "seed"),
}
"""Knobs of training that change neither memory nor time: points of a sweep share an estimate."""


@dataclass
class _Counted:
    """What the data holds, and how long its pairs are."""

    num_pairs: int = 0
    num_learnt: int = 0
    """Pairs on the training side."""
    num_prompts: int = 0
    """On the training side, to make pairs of."""
    lengths: "list[Lengths]" = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    """Of the pairs whose lengths were looked at, by reason."""

    @property
    def num_looked_at(self) -> int:
        return len(self.lengths) + self.dropped.total()


@dataclass(frozen=True)
class Plan:
    """What is known of a training before it begins."""

    num_pairs: int
    lengths: "list[Lengths]"
    estimate: "Estimate"
    devices: int
    notes: list[str]
    warnings: list[str]
    sets: tuple[str, ...] = ()
    """What tells a point of a sweep from the others."""


def plan_specs(points: Sequence[tuple[tuple[str, ...], Spec]], *, devices: int) -> list[Plan]:
    """Count pairs and tokens, and the model's parameters; once for points that share them.

    The specs differ in knobs of training alone.
    """
    from dpoflow.policy.load import config_and_tokenizer
    from dpoflow.train.estimate import estimate
    from dpoflow.train.prepare import most_tokens

    asked, base = points[0][1].snapshot, points[0][1].model
    init = asked.init or base
    recorded = init.startswith(REGISTRY)  # a version is fetched whole, and has its base's shape
    config, tokenizer = config_and_tokenizer(base if recorded else init)
    shape = [f"{init} is taken to be of the shape of {base}"] if recorded else []
    counts: dict[tuple[int, str], _Counted] = {}
    estimates: dict[str, Estimate] = {}
    plans = []
    for sets, spec in points:
        train, most = spec.train, most_tokens(config, spec.train)
        measure = (most, train.too_long)
        if measure not in counts:
            counts[measure] = _counted(spec, tokenizer, most)
        found = counts[measure]
        number = _number(spec, found)
        what = train.model_dump_json(exclude=_NO_MATTER)
        if what not in estimates:
            estimates[what] = estimate(
                config,
                found.lengths,
                number,
                train,
                devices=devices,
                half=train.dtype != "float32",
                another_reference=(asked.reference or init) != init,
            )
        notes, warnings = [*_notes(spec, found), *shape], _warnings(spec, found, most)
        plans.append(
            Plan(number, found.lengths, estimates[what], devices, notes, warnings, tuple(sets))
        )
    return plans


def _counted(spec: Spec, tokenizer: Any, most: int) -> _Counted:
    found = _Counted()
    for item in rows_of(spec):
        learnt = item.split == "train"
        if isinstance(item, PreferencePair):
            used = item.label == "preferred"
            found.num_pairs += used
            found.num_learnt += used and learnt
        elif isinstance(item, Rating):
            used = spec.train.loss == "kto"
            found.num_pairs += used
            found.num_learnt += used and learnt
        else:
            used = learnt and spec.synthesize.enabled
            found.num_prompts += used
        if used and learnt and found.num_looked_at < SAMPLE:
            made = _lengths(spec, tokenizer, item, most)
            if isinstance(made, str):
                found.dropped[made] += 1
            else:
                found.lengths.append(made)
    if not found.lengths:
        raise DataRejected(
            f"the data has no pair that could be trained on ({found.num_learnt} pairs and "
            f"{found.num_prompts} prompts on the training side; dropped of those looked at: "
            f"{_listed(found.dropped) or 'none'}); look at data.sources and train.max_tokens "
            f"({spec.train.max_tokens}{f', of which the model reads {most}' * _cut(spec, most)})"
        )
    return found


def _lengths(spec: Spec, tokenizer: Any, item: Item, most: int) -> "Lengths | str":
    """Of the pair, or of the one that is still to be made, at its longest; or why it is dropped."""
    from dpoflow.policy.tokenise import EncodedPair, encode_pair, encode_rating, prompt_tokens
    from dpoflow.train.estimate import Lengths

    if not isinstance(item, Prompt):
        made = (
            encode_pair(tokenizer, item, most, spec.train.too_long)
            if isinstance(item, PreferencePair)
            else encode_rating(tokenizer, item, most, spec.train.too_long)
        )
        if not isinstance(made, EncodedPair):
            return made
        return Lengths(len(made.prompt), len(made.chosen), len(made.rejected))
    prompt, answer = len(prompt_tokens(tokenizer, item.prompt)), _longest_answer(spec)
    if spec.train.too_long == "cut_prompt":
        prompt = max(1, min(prompt, most - answer))
    room = min(answer, most - prompt)
    return Lengths(prompt, room, room) if room > 1 else "too_long"


def _longest_answer(spec: Spec) -> int:
    return max(writer.sampling.max_new_tokens for writer in spec.synthesize.writers)


def _cut(spec: Spec, most: int) -> bool:
    """Whether the model reads less than the spec asks for."""
    return most < spec.train.max_tokens


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{number:,} {reason}" for reason, number in sorted(counts.items()))


def _number(spec: Spec, found: _Counted) -> int:
    """Pairs to train on, all told."""
    kept = len(found.lengths) / found.num_looked_at
    return max(1, round((_from_data(spec, found) + found.num_prompts) * kept))


def _from_data(spec: Spec, found: _Counted) -> float:
    """Pairs of the data that validate will hand to training."""
    limit = spec.data.max_pairs or found.num_pairs
    return found.num_learnt * min(1.0, limit / max(1, found.num_pairs))


def _notes(spec: Spec, found: _Counted) -> list[str]:
    told = (
        f"{found.num_pairs:,} pairs, {found.num_learnt:,} of them on the training side, and "
        f"{found.num_prompts:,} prompts there to make pairs of"
    )
    if not found.num_prompts:
        return [told]
    longest = f"one a prompt, {_longest_answer(spec)} tokens"
    return [told, f"made pairs are counted at their longest: {longest}"]


def _warnings(spec: Spec, found: _Counted, most: int) -> list[str]:
    """What would stop the run, or leave pairs out, after time was spent on it."""
    told, train = [], spec.train
    at_most = _from_data(spec, found) * (1 + spec.data.replay_per_new * bool(spec.data.replay))
    at_most += found.num_prompts * spec.synthesize.max_pairs
    if at_most < spec.data.min_pairs:
        told.append(
            f"data.min_pairs asks for {spec.data.min_pairs:,} training pairs and there will be "
            f"{round(at_most):,} at most: the run would stop before it trains; add data, or lower "
            "data.min_pairs"
        )
    if _cut(spec, most):
        told.append(
            f"the model reads {most:,} tokens at most: train.max_tokens {train.max_tokens:,} is "
            "taken for that"
        )
    if found.dropped:
        told.append(
            f"{found.dropped.total():,} of the {found.num_looked_at:,} pairs looked at would not "
            f"be trained on: {_listed(found.dropped)} (the limit is {most:,} tokens)"
        )
    return told


def measured_here(spec: Spec) -> "Machine | str":
    """This machine's memory and speed as `spec` would train on it; or why it would not."""
    import os

    import torch

    from dpoflow.train.estimate import BUSY_HERE, Machine

    if spec.train.backend == "trainjob":
        return "not where train.backend trainjob trains"
    if spec.train.device != "cpu" and torch.cuda.is_available():
        per_s = _products_a_second(torch.device("cuda"), 4096)
        return Machine(torch.cuda.get_device_properties(0).total_memory / _GIB, per_s / 1e12)
    if spec.train.device == "cuda":
        return "no GPU, which train.device cuda asks for"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    return Machine(memory, _products_a_second(torch.device("cpu"), 512) / 1e12, BUSY_HERE)


def _products_a_second(device: Any, rows: int) -> float:
    """Floating-point operations of matrix products, in the faster type."""
    import torch

    best = 0.0
    for kind in (torch.float32, torch.bfloat16):
        left, right = (torch.full((rows, 1024), 0.5, dtype=kind, device=device) for _ in range(2))
        for _ in range(5):
            began = time.perf_counter()
            product = torch.nn.functional.linear(left, right)
            product[0, 0].item()  # a GPU answers before it has finished
            best = max(best, 2 * rows * rows * 1024 / (time.perf_counter() - began))
    return best


def machine_named(name: str) -> "Machine":
    """A GPU of the table; ConfigError where it is not in it."""
    from dpoflow.train.estimate import MACHINES

    if name not in MACHINES:
        raise ConfigError(f"--gpu {name} is not known; known: {', '.join(MACHINES)}")
    return MACHINES[name]


def machines_of(
    plans: Sequence[Plan], here: "Machine | str", gpus: Sequence[str], price: float | None
) -> list[dict[str, Any]]:
    """One row a kind of machine: whether all plans fit, how long they take, what they cost."""
    from dpoflow.train.estimate import MACHINES

    kinds = {name: machine_named(name) for name in gpus or MACHINES}
    rows: list[dict[str, Any]] = []
    need = max(plan.estimate.memory for plan in plans)
    for name, machine in {HERE: here, **kinds}.items():
        devices = 1 if name == HERE else plans[0].devices
        row: dict[str, Any] = {"machine": name, "devices": devices}
        unknown = dict.fromkeys(("memory_gib", "fits", "hours", "money"))
        if isinstance(machine, str):
            rows.append({**row, **unknown, "why": machine})
            continue
        each = [plan.estimate.hours(machine, devices) for plan in plans]
        hours = [sum(low for low, _ in each), sum(high for _, high in each)]
        rate = None if price is None or name == HERE else price * devices
        rows.append(
            {
                **row,
                "memory_gib": machine.memory_gib,
                "fits": need / _GIB <= machine.memory_gib,
                "hours": hours,
                "money": None if rate is None else [rate * each for each in hours],
            }
        )
    return rows


def show_plans(
    console: Console,
    plans: Sequence[Plan],
    here: "Machine | str",
    gpus: Sequence[str],
    price: float | None,
) -> None:
    """The plan as a table for people; of a sweep, that of all its points together."""
    for note in plans[0].notes:
        console.print(note, highlight=False)
    for told in dict.fromkeys(told for plan in plans for told in plan.warnings):
        console.print(f"[yellow]warning:[/] {escape(told)}", highlight=False)
    largest = max(plans, key=lambda plan: plan.estimate.memory)
    if len(plans) > 1:
        _show_points(console, plans)
    else:
        console.print(_pairs_text(largest), highlight=False)
    console.print(_memory_text(largest.estimate), highlight=False)
    console.print(_machine_table(machines_of(plans, here, gpus, price)))
    if isinstance(here, str):
        console.print(
            f"{HERE}: {here}; whether it fits where it will run, and how long it takes, depends on "
            "the device there: --gpu names one",
            highlight=False,
        )
    hint = "" if price is not None else "; --price PER_GPU_HOUR gives money"
    points = f"; {len(plans)} points, one after another" if len(plans) > 1 else ""
    console.print(
        f"training only{points}; GPUs at an assumed 25% to 45% of their peak, none was "
        f"measured{hint}",
        highlight=False,
    )


def _pairs_text(plan: Plan) -> str:
    mean = sum(each.fed("packed") for each in plan.lengths) / len(plan.lengths)
    return (
        f"about {plan.num_pairs:,} pairs to train on, {mean:.0f} tokens each "
        f"(measured on {len(plan.lengths)}); {plan.estimate.updates:,} updates"
    )


def _memory_text(found: "Estimate") -> str:
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimiser": found.optimizer,
        "activations": found.activations,
        "head": found.head,
    }
    return (
        f"{found.parameters / 1e6:,.1f} M parameters, {found.trained / 1e6:,.1f} M trained; "
        f"{_size(found.memory)} a device: "
        + ", ".join(f"{name} {_size(number)}" for name, number in parts.items())
    )


def _size(number: float) -> str:
    return f"{number / _GIB:,.1f} GiB" if number >= _GIB else f"{number / _MIB:,.1f} MiB"


def _show_points(console: Console, plans: Sequence[Plan]) -> None:
    table = Table(box=None, pad_edge=False)
    for title in ("point", "pairs", "updates", "memory"):
        table.add_column(title, justify="left" if title == "point" else "right")
    for plan in plans:
        found = plan.estimate
        sizes = (f"{plan.num_pairs:,}", f"{found.updates:,}", _size(found.memory))
        table.add_row(escape(" ".join(plan.sets)), *sizes)
    console.print(table)


def _machine_table(rows: Sequence[dict[str, Any]]) -> Table:
    priced = any(row["money"] is not None for row in rows)
    table = Table(box=None, pad_edge=False)
    for title in ("machine", "memory", "fits", "time", *(["money"] if priced else [])):
        table.add_column(title, justify="left" if title == "machine" else "right")
    for row in rows:
        money = row["money"]
        table.add_row(
            f"{row['devices']} x {row['machine']}" if row["devices"] > 1 else row["machine"],
            "?" if row["memory_gib"] is None else f"{row['memory_gib']:.0f} GiB",
            {True: "yes", False: "[red]no[/]", None: "[yellow]not known[/]"}[row["fits"]],
            "?" if row["hours"] is None else _time_text(*row["hours"]),
            *([] if not priced else ["" if money is None else f"{money[0]:.2f} to {money[1]:.2f}"]),
        )
    return table


def _time_text(low_h: float, high_h: float) -> str:
    """Hours as a person says them."""
    low, high = seconds_text(3600 * low_h), seconds_text(3600 * high_h)
    if 3600 * high_h < 1:
        return "under 1 s"
    return low if low == high else f"{low} to {high}"


def as_json(
    plans: Sequence[Plan], here: "Machine | str", gpus: Sequence[str], price: float | None
) -> dict[str, Any]:
    """The plan for programs; of a sweep, its points and what they take together."""
    machines = machines_of(plans, here, gpus, price)
    if len(plans) == 1 and not plans[0].sets:
        return _one_as_json(plans[0]) | {"machines": machines}
    points = [{"sets": list(plan.sets)} | _one_as_json(plan) for plan in plans]
    return {"points": points, "machines": machines}


def _one_as_json(plan: Plan) -> dict[str, Any]:
    found = plan.estimate
    return {
        "num_pairs": plan.num_pairs,
        "updates": found.updates,
        "parameters": found.parameters,
        "trained": found.trained,
        "memory_bytes": round(found.memory),
        "flops": found.flops,
        "warnings": plan.warnings,
    }
