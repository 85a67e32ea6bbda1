"""`dpoflow plan`: what a training would need, before anything is spent.

Reads   a spec, its data and its model's config; no weights
Gives   `plan_spec`, `show_plan`
Not     the arithmetic (dpoflow.train.estimate)

Of the machine's time only training is counted; what judges and writers behind endpoints would be
paid is told by spending.py.
"""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from dpoflow.contracts.errors import ConfigError, DataRejected
from dpoflow.contracts.pairs import PreferencePair
from dpoflow.contracts.spec import REGISTRY, Spec
from dpoflow_pipelines.rows import rows_of

if TYPE_CHECKING:
    from dpoflow.train.estimate import Estimate, Lengths, Machine

SAMPLE = 256
"""Pairs whose lengths are measured in tokens; the rest is only counted."""


@dataclass(frozen=True)
class Plan:
    """What is known of a training before it begins."""

    num_pairs: int
    lengths: "list[Lengths]"
    estimate: "Estimate"
    here: "Machine"
    """This machine, its speed measured."""
    devices: int
    notes: list[str]


def plan_spec(spec: Spec, *, devices: int) -> Plan:
    """Count pairs and tokens, and the model's parameters."""
    from dpoflow.policy.load import config_and_tokenizer
    from dpoflow.train.estimate import estimate

    init = spec.snapshot.init or spec.model
    recorded = init.startswith(REGISTRY)  # a version is fetched whole, and has its base's shape
    config, tokenizer = config_and_tokenizer(spec.model if recorded else init)
    num_pairs, lengths, notes = _measured(spec, tokenizer)
    if recorded:
        notes.append(f"{init} is taken to be of the shape of {spec.model}")
    half = spec.train.dtype != "float32"
    asked = spec.snapshot
    wanted = estimate(
        config,
        lengths,
        num_pairs,
        spec.train,
        devices=devices,
        half=half,
        another_reference=(asked.reference or init) != init,
    )
    return Plan(num_pairs, lengths, wanted, _here(), devices, notes)


def _measured(spec: Spec, tokenizer: Any) -> "tuple[int, list[Lengths], list[str]]":
    from dpoflow.policy.tokenise import EncodedPair, encode_pair, prompt_tokens
    from dpoflow.train.estimate import Lengths

    train, answer = spec.train, spec.synthesize.sampling.max_new_tokens
    lengths: list[Lengths] = []
    num_pairs = num_made = num_dropped = 0
    for item in rows_of(spec):
        if isinstance(item, PreferencePair):
            num_pairs += 1
            if len(lengths) + num_dropped < SAMPLE:
                made = encode_pair(tokenizer, item, train.max_tokens, train.too_long)
                if isinstance(made, EncodedPair):
                    sizes = (len(made.prompt), len(made.chosen), len(made.rejected))
                    lengths.append(Lengths(*sizes))
                else:
                    num_dropped += 1
        elif spec.synthesize.enabled:
            num_made += 1
            if len(lengths) + num_dropped < SAMPLE:
                lengths.append(Lengths(len(prompt_tokens(tokenizer, item.prompt)), answer, answer))
    if not lengths:
        raise DataRejected(
            f"the data has no pair that could be trained on ({num_pairs} pairs, {num_dropped} of "
            f"them looked at); look at data.sources and train.max_tokens ({train.max_tokens})"
        )
    kept = len(lengths) / (len(lengths) + num_dropped)
    limit = spec.data.max_pairs or num_pairs
    number = (min(num_pairs, limit) + num_made) * (1 - spec.data.heldout_fraction) * kept
    notes = [f"{num_pairs:,} pairs and {num_made:,} prompts to make pairs of"]
    if num_made:
        notes.append(f"made pairs are counted at their longest: one a prompt, {answer} tokens")
    return max(1, round(number)), lengths, notes


def _here() -> "Machine":
    """This machine's memory, and what its processor multiplies in a second, in the faster type."""
    import os

    import torch

    from dpoflow.train.estimate import BUSY_HERE, Machine

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    best = 0.0
    for kind in (torch.float32, torch.bfloat16):
        left, right = (torch.full((512, 1024), 0.5, dtype=kind) for _ in range(2))
        for _ in range(5):
            began = time.perf_counter()
            torch.nn.functional.linear(left, right)
            best = max(best, 2 * 512 * 512 * 1024 / (time.perf_counter() - began))
    return Machine(gib, best / 1e12, BUSY_HERE)


def machine_named(name: str) -> "Machine":
    """A GPU of the table; ConfigError where it is not in it."""
    from dpoflow.train.estimate import MACHINES

    if name not in MACHINES:
        raise ConfigError(f"--gpu {name} is not known; known: {', '.join(MACHINES)}")
    return MACHINES[name]


def machines_of(plan: Plan, gpus: list[str], price: float | None) -> list[dict[str, Any]]:
    """One row a kind of machine: whether it fits, how long it takes, what it costs."""
    from dpoflow.train.estimate import MACHINES

    kinds = {name: machine_named(name) for name in gpus or MACHINES}
    rows = []
    for name, machine in {"this machine": plan.here, **kinds}.items():
        devices = 1 if name == "this machine" else plan.devices
        low, high = plan.estimate.hours(machine, devices)
        money = None if price is None or name == "this machine" else price * devices
        rows.append(
            {
                "machine": name,
                "devices": devices,
                "memory_gib": machine.memory_gib,
                "fits": plan.estimate.memory / 2**30 <= machine.memory_gib,
                "hours": [low, high],
                "money": None if money is None else [money * low, money * high],
            }
        )
    return rows


def show_plan(console: Console, plan: Plan, gpus: list[str], price: float | None) -> None:
    """The plan as a table for people."""
    found, gib = plan.estimate, 2**30
    mean = sum(each.fed("packed") for each in plan.lengths) / len(plan.lengths)
    for note in plan.notes:
        console.print(note, highlight=False)
    console.print(
        f"about {plan.num_pairs:,} pairs to train on, {mean:.0f} tokens each "
        f"(measured on {len(plan.lengths)}); {found.updates:,} updates",
        highlight=False,
    )
    console.print(
        f"{found.parameters / 1e6:,.0f} M parameters, {found.trained / 1e6:,.1f} M trained; "
        f"{found.memory / gib:.1f} GiB a device: weights {found.weights / gib:.1f}, gradients "
        f"{found.gradients / gib:.1f}, optimiser {found.optimizer / gib:.1f}, activations "
        f"{found.activations / gib:.1f}, head {found.head / gib:.1f}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    for title in ("machine", "memory", "fits", "hours", "money"):
        table.add_column(title, justify="left" if title == "machine" else "right")
    for row in machines_of(plan, gpus, price):
        low, high = row["hours"]
        money = row["money"]
        table.add_row(
            f"{row['devices']} x {row['machine']}" if row["devices"] > 1 else row["machine"],
            f"{row['memory_gib']:.0f} GiB",
            "yes" if row["fits"] else "[red]no[/]",
            f"{low:.2g} to {high:.2g}",
            "" if money is None else f"{money[0]:.2f} to {money[1]:.2f}",
        )
    console.print(table)
    hint = "" if price is not None else "; --price PER_GPU_HOUR gives money"
    console.print(
        f"training only; GPUs at an assumed 25% to 45% of their peak, none was measured{hint}",
        highlight=False,
    )


def as_json(plan: Plan, gpus: list[str], price: float | None) -> dict[str, Any]:
    """The plan for programs."""
    found = plan.estimate
    return {
        "num_pairs": plan.num_pairs,
        "updates": found.updates,
        "parameters": found.parameters,
        "trained": found.trained,
        "memory_bytes": round(found.memory),
        "flops": found.flops,
        "machines": machines_of(plan, gpus, price),
    }
