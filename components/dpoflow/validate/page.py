"""The data as one HTML page: what came in, what was not used and why, what is left.

Reads   the facts of report.json, some refused rows, some kept pairs
Gives   `data_page`; the same data give the same bytes
Not     the facts themselves (ledger.py, report.py)
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from matplotlib.figure import Figure

from dpoflow.contracts.pairs import PreferencePair
from dpoflow.pages import Html, document, drawing, table, text
from dpoflow.sources.reasons import HARMLESS
from dpoflow.validate.ledger import Refused

_MAX_CHARS = 1500
"""Of a text on the page; the whole of it is in the pairs."""
_MAX_SLICES = 60


def data_page(
    facts: Mapping[str, Any], refused: Iterable[Refused], pairs: Sequence[PreferencePair]
) -> str:
    """`refused` are a few of each reason, `pairs` a few of those kept."""
    counts = facts["counts"]
    broken = sum(number for code, number in counts["quarantined"].items() if code not in HARMLESS)
    head = f"{counts['num_kept']:,} of {counts['num_in']:,} rows kept"
    body = [f"<h1>{head}</h1>", f"<p>{_balance(counts, broken)}</p>"]
    if facts.get("pairs_digest"):
        body.append(f"<p>pairs {escape(facts['pairs_digest'])}</p>")
    if counts["quarantined"]:
        body += ["<h2>Rows that are not used</h2>", _reasons(facts, list(refused))]
    body += ["<h2>Sources</h2>", _sources(facts["by_source"])]
    if facts["by_slice"]:
        body += ["<h2>Slices</h2>", _slices(facts["by_slice"])]
    lengths = facts.get("lengths")
    if lengths:
        body += ["<h2>Lengths of answers</h2>", _lengths(lengths), _bias(facts)]
    if facts.get("expectations"):
        body += ["<h2>Expectations</h2>", _expectations(facts["expectations"])]
    if pairs:
        body += [f"<h2>{len(pairs)} pairs, the first by id</h2>", _pairs(pairs)]
    return document(head, "".join(body))


def _balance(counts: Mapping[str, Any], broken: int) -> str:
    unused = ", ".join(f"{number:,} {code}" for code, number in counts["quarantined"].items())
    rest = f" + {escape(unused)}" if unused else ""
    colour = "bad" if broken else "good"
    return (
        f"{counts['num_in']:,} in = {counts['num_kept']:,} kept{rest}. "
        f'<span class="{colour}">{broken:,} broken.</span>'
    )


def _reasons(facts: Mapping[str, Any], refused: Sequence[Refused]) -> Html:
    rows: list[Sequence[str | int | Html]] = []
    for code, number in facts["counts"]["quarantined"].items():
        some = "\n".join(
            f"{each.row}: {each.detail or each.excerpt}" for each in refused if each.code == code
        )
        rows.append((code, number, facts["reasons"][code], text(some)))
    return table(("reason", "rows", "which means", "such as"), rows)


def _sources(by_source: Mapping[str, Mapping[str, int]]) -> Html:
    return table(
        ("source", "kept", "not used"),
        (
            (name, told.get("kept", 0), sum(told.values()) - told.get("kept", 0))
            for name, told in by_source.items()
        ),
    )


def _slices(by_slice: Mapping[str, Mapping[str, int]]) -> Html:
    """The thin ones first: they are what evaluation can say least about."""
    columns = ("train_pairs", "heldout_pairs", "train_prompts", "heldout_prompts")
    thin = sorted(by_slice.items(), key=lambda item: (sum(item[1].values()), item[0]))
    shown = table(
        ("slice", *(name.replace("_", " ") for name in columns)),
        ((name, *(told.get(each, 0) for each in columns)) for name, told in thin[:_MAX_SLICES]),
    )
    more = f"<p>and {len(thin) - _MAX_SLICES:,} larger ones</p>" if len(thin) > _MAX_SLICES else ""
    return Html(shown + more)


def _lengths(lengths: Mapping[str, Sequence[float]]) -> Html:
    figure = Figure(figsize=(9, 2.8), layout="constrained")
    axis = figure.subplots()
    for name, colour in (("chosen", "#2f6fab"), ("rejected", "#c2571a")):
        axis.stairs(lengths[name], lengths["edges"], label=name, color=colour, linewidth=1.4)
    axis.set_xscale("log")
    axis.set_xlabel("characters")
    axis.set_ylabel("pairs")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    return drawing(figure)


def _bias(facts: Mapping[str, Any]) -> str:
    told = (facts.get("length_bias") or {}).get("all")
    if not told:
        return ""
    return (
        f"<p>chosen is the longer one in {told['chosen_longer_share']:.1%} of "
        f"{told['num_pairs']:,} training pairs, {told['mean_length_ratio']:.2f} times as long on "
        "average. A model learns that, too.</p>"
    )


def _expectations(held: Mapping[str, bool]) -> Html:
    words = {True: Html('<td class="good">held</td>'), False: Html('<td class="bad">broken</td>')}
    return table(("expectation", ""), ((name, words[fine]) for name, fine in held.items()))


def _pairs(pairs: Sequence[PreferencePair]) -> Html:
    return table(
        ("asked", "chosen", "rejected"),
        (
            (
                text(_cut(pair.prompt[-1].content)),
                text(_cut(pair.chosen.content)),
                text(_cut(pair.rejected.content)),
            )
            for pair in pairs
        ),
    )


def _cut(content: str) -> str:
    return content if len(content) <= _MAX_CHARS else f"{content[:_MAX_CHARS]} …"
