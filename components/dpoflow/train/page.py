"""The curves of a training run as one HTML page that asks the network for nothing.

Reads   the figures of every update, the alarms
Gives   `curves_page`; the same run gives the same bytes, so rates are left out
Not     where figures come from (figures.py)
"""

from collections.abc import Mapping, Sequence
from html import escape

import matplotlib as mpl

mpl.use("svg")

from matplotlib import pyplot as plt  # after the backend is chosen
from matplotlib.axes import Axes

from dpoflow.pages import document, drawing

Updates = Sequence[tuple[int, Mapping[str, float]]]
Curve = tuple[str, Mapping[str, str]]
PANELS: tuple[Curve, ...] = (
    ("supervised term, nats a token", {"train/sft_loss": ""}),
    ("reward", {"train/reward_chosen": "chosen", "train/reward_rejected": "rejected"}),
    ("reward margin", {"train/reward_margin": "training", "heldout/reward_margin": "held-out"}),
    (
        "pairs told apart",
        {"train/reward_accuracy": "training", "heldout/reward_accuracy": "held-out"},
    ),
    ("objective", {"train/loss": "training", "heldout/loss": "held-out"}),
    ("log-probability", {"train/chosen_logps": "chosen", "train/rejected_logps": "rejected"}),
    ("nats a token from the reference (k3)", {"train/kl": ""}),
    ("entropy, nats", {"train/entropy": ""}),
    ("tokens of answers", {"train/chosen_tokens": "chosen", "train/rejected_tokens": "rejected"}),
    ("gradient norm", {"train/grad_norm": ""}),
    ("learning rate", {"train/learning_rate": ""}),
)
"""Title of each panel, and which metrics it shows under what names."""

COLOURS = ("#2f6fab", "#c2571a")


def curves_page(metrics: Updates, alarms: Sequence[str]) -> str:
    """Every panel that has figures; `metrics` are (update, figures), in order."""
    warnings = "".join(f'<p class="alarm">{escape(alarm)}</p>' for alarm in alarms)
    told = warnings or "<p>No alarm sounded.</p>"
    head = f"<h1>Training: {len(metrics)} updates</h1>"
    return document("training", f"{head}{told}{_drawn(metrics)}")


def _drawn(metrics: Updates) -> str:
    told = {name for _, figures in metrics for name in figures}
    panels = [panel for panel in PANELS if told.intersection(panel[1])]
    rows = -(-len(panels) // 2)
    with mpl.rc_context({"font.size": 9}):
        figure, axes = plt.subplots(rows, 2, figsize=(12, 2.6 * rows), squeeze=False)
        margin = 0.3 / (2.6 * rows)  # 0.3 inches; tight_layout would draw everything once more
        figure.subplots_adjust(0.05, margin, 0.99, 1 - margin, wspace=0.12, hspace=0.35)
        for axis, panel in zip(axes.flat, panels, strict=False):
            _panel(axis, panel, metrics)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        drawn = drawing(figure)
        plt.close(figure)
    return drawn


def _panel(axis: Axes, panel: Curve, metrics: Updates) -> None:
    title, curves = panel
    for colour, (name, label) in zip(COLOURS, curves.items(), strict=False):
        points = [(update, figures[name]) for update, figures in metrics if name in figures]
        if points:
            mark = "o" if name.startswith("heldout") else ""
            (line,) = axis.plot(*zip(*points, strict=True), color=colour, label=label)
            line.set(linewidth=1.3, marker=mark, markersize=3)
    axis.set_title(title, loc="left")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if len(axis.lines) > 1:
        axis.legend(frameon=False)
