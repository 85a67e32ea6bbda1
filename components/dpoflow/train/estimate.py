"""What a training will need, before it begins: memory, arithmetic, time.

Reads   a model's config, lengths of pairs in tokens, the train section of the spec
Gives   `Machine`, `MACHINES`, `Lengths`, `Estimate`, `estimate`
Not     reading the data or asking the user (dpoflow_pipelines/plan.py)

Parameters and kept activations are counted on a model of fake tensors, which have shapes and no
memory, so any family is counted as it would be trained. What is assumed stands in `BUSY`, `SPARE`
and `MACHINES`; nothing here was measured on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode  # where torch's own profilers take it from

from dpoflow.contracts.objectives import REFERENCE_FREE
from dpoflow.contracts.spec import TrainConfig
from dpoflow.policy.attention import arguments, attending
from dpoflow.policy.head import PART, SLICE
from dpoflow.policy.layout import Group, LayoutName, lay_out
from dpoflow.policy.library import AutoModelForCausalLM
from dpoflow.policy.logprobs import autocast, choose_layout, without_adapters
from dpoflow.train.prepare import prepared

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BUSY = (0.25, 0.45)
"""Share of a GPU's peak that training makes use of, at least and at most: published figures of
transformers' training lie here."""

BUSY_HERE = (0.4, 0.9)
"""The same of a processor whose products were timed."""

SPARE = 1.1
"""Fragments of the allocator, and what libraries keep for themselves."""


@dataclass(frozen=True)
class Machine:
    """A device, by its data sheet: dense bfloat16 (T4: float16), no sparsity."""

    memory_gib: float
    tflops: float
    busy: tuple[float, float] = BUSY


MACHINES = {
    "T4": Machine(15, 65),
    "L4": Machine(22, 121),
    "A10G": Machine(22, 70),
    "L40S": Machine(44, 362),
    "A100-40": Machine(39, 312),
    "A100-80": Machine(79, 312),
    "H100": Machine(79, 989),
    "H200": Machine(140, 989),
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of one pair."""

    prompt: int
    chosen: int
    rejected: int

    def fed(self, layout: LayoutName) -> int:
        """What goes through the trunk: the prompt once, or before each answer."""
        prompts = 2 if layout == "concat" else 1
        return prompts * self.prompt + self.chosen + self.rejected - 2


@dataclass(frozen=True)
class Estimate:
    """Bytes on each device, and floating-point operations of the whole training."""

    parameters: int
    trained: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    another: float
    """Of the reference's weights, where it is another model: before training, beside the policy."""
    flops: float
    updates: int

    @property
    def memory(self) -> float:
        """Bytes that one device needs."""
        kept = self.weights + self.gradients + self.optimizer + self.activations + self.head
        return SPARE * max(kept, self.weights + self.another)

    def hours(self, machine: Machine, devices: int) -> tuple[float, float]:
        """(at least, at most) on so many of these."""
        per_s = machine.tflops * 1e12 * devices
        slow, quick = (self.flops / (per_s * busy) / 3600 for busy in machine.busy)
        return quick, slow


def estimate(
    config: "PretrainedConfig",
    lengths: Sequence[Lengths],
    num_pairs: int,
    knobs: TrainConfig,
    *,
    devices: int = 1,
    half: bool = True,
    another_reference: bool = False,
) -> Estimate:
    """For `num_pairs` pairs, of which `lengths` are a sample; `half`: products are bfloat16.

    `another_reference`: it is another model than the one that is trained.
    """
    worst = sorted(lengths, key=lambda each: each.fed("packed"), reverse=True)
    batch = max(1, knobs.batch_size // devices)
    with FakeTensorMode():
        # Without adapters: those keep what the frozen weights beneath them need not.
        bare = knobs.model_copy(update={"compile": False, "method": "full"})
        bare_model = _prepared(config, bare)
        layout = choose_layout(bare_model, knobs.layout)
        activations = kept_bytes(bare_model, worst[:batch], layout, half=half)
    with torch.device("meta"):
        model = _prepared(config, knobs.model_copy(update={"compile": False}))
    plain = without_adapters(model)
    head = plain.get_output_embeddings().weight
    every = {id(weight): weight for weight in model.parameters()}.values()
    trained = sum(weight.numel() for weight in every if weight.requires_grad)
    total = sum(weight.numel() for weight in every)
    products = _products(plain.base_model)
    fed = sum(each.fed(layout) for each in lengths) / len(lengths)
    answered = sum(each.chosen + each.rejected for each in lengths) / len(lengths)
    split = devices if knobs.sharding == "fsdp" else 1
    frozen, num_watched = knobs.method == "lora", num_pairs * knobs.heldout_fraction
    learnt = (num_pairs - num_watched) * knobs.epochs
    # Forward 2, backward 2 for the input and 2 for the weight.
    passes = (4 if frozen else 6) * learnt + 2 * num_watched * knobs.heldout_looks
    if knobs.loss == "kto":  # and forward through the answers to other prompts
        passes += 2 * (learnt + num_watched * knobs.heldout_looks)
    if knobs.loss not in REFERENCE_FREE:  # asked once, and about those answers, too
        passes += (4 if knobs.loss == "kto" else 2) * num_pairs
    again = 2 * learnt if knobs.activation_checkpointing else 0
    weights = _weight_bytes(total, products, knobs) / split + (2 * products if half else 0)
    return Estimate(
        parameters=total,
        trained=trained,
        weights=weights,
        gradients=4 * trained / split,
        optimizer=8 * trained / split,
        activations=activations,
        head=4.0 * min(SLICE if frozen else PART, int(answered * batch) * len(head))
        + (0 if frozen else 4.0 * head.numel()),
        another=weights if another_reference else 0.0,
        flops=fed * products * (passes + again) + answered * head.numel() * passes,
        updates=max(1, round(learnt / (knobs.batch_size * knobs.gradient_accumulation))),
    )


def _prepared(config: "PretrainedConfig", knobs: TrainConfig) -> Any:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return prepared(model, knobs).train()


def _products(trunk: nn.Module) -> int:
    """Weights that each token is multiplied with; embeddings are looked up, not multiplied."""
    looked_up = {
        id(weight)
        for module in trunk.modules()
        if isinstance(module, nn.Embedding)
        for weight in module.parameters()
    }
    return sum(
        weight.numel()
        for weight in trunk.parameters()
        if weight.dim() == 2 and id(weight) not in looked_up
    )


def _weight_bytes(total: int, products: int, knobs: TrainConfig) -> float:
    if knobs.method == "lora" and knobs.lora.bits == 4:
        return 4.0 * (total - products) + 0.56 * products  # NF4 with a scale for each 64 weights
    return 4.0 * total


def kept_bytes(model: Any, lengths: Sequence[Lengths], layout: LayoutName, *, half: bool) -> int:
    """What autograd keeps of a forward pass over a batch of such pairs, weights aside."""
    own = {id(weight) for weight in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base  # noqa: SLF001  # a view of
        if id(base) not in own:
            kept[id(base)] = base  # held, so that no other gets its id
        return tensor

    groups = [Group((0,) * n.prompt, ((0,) * n.chosen, (0,) * n.rejected)) for n in lengths]
    batch = lay_out(groups, layout)
    with (
        attending(model, layout),
        autocast(torch.device("cpu"), torch.bfloat16 if half else torch.float32),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        plain = without_adapters(model)
        plain.base_model(input_ids=batch.input_ids_RT, use_cache=False, **arguments(batch))
    return sum(base.numel() * base.element_size() for base in kept.values())
