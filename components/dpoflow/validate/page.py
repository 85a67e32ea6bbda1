"""The data as one HTML page: what came in, what was not used and why, what is left.

Reads   the facts of report.json, some refused rows, some kept pairs
Gives   `data_page`; the same data give the same bytes
Not     the facts themselves (ledger.py, report.py)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from dpoflow.contracts.pairs import PreferencePair
from dpoflow.pages import Html, blank, document, drawing, table, text
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
    for title, shown in _sections(facts, list(refused), pairs):
        if shown:
            body += [f"<h2>{title}</h2>", shown]
    return document(head, "".join(body))


def _sections(
    facts: Mapping[str, Any], refused: Sequence[Refused], pairs: Sequence[PreferencePair]
) -> Iterator[tuple[str, str]]:
    """Each part of the page; one that has nothing to show is empty."""

    def shown(part: Callable[[Any], str], key: str) -> str:
        return part(facts[key]) if facts.get(key) else ""

    yield "Rows that are not used", _reasons(facts, refused) if refused else ""
    yield "Sources", _sources(facts["by_source"])
    yield "Slices", shown(lambda told: _slices(told, facts.get("thin", 0)), "by_slice")
    yield "Lengths of answers", shown(lambda told: _lengths(told) + _bias(facts), "lengths")
    yield "Lengths in tokens", shown(_tokens, "tokens")
    yield "What is in the texts", shown(lambda told: _findings(told, facts["counts"]), "findings")
    yield "Languages", shown(_languages, "languages")
    yield "Annotators", shown(lambda told: _agreement(told, facts["labels"]), "agreement")
    yield "Prompts that are nearly the same", shown(_near, "near")
    yield "Expectations", shown(_expectations, "expectations")
    yield f"{len(pairs)} pairs, the first by id", _pairs(pairs) if pairs else ""


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


def _slices(by_slice: Mapping[str, Mapping[str, int]], thin: int) -> Html:
    """The thin ones first: they are what training and evaluation can say least about."""
    sides, kinds = ("train", "heldout"), ("pairs", "ratings", "prompts")
    columns = [f"{side}_{kind}" for kind in kinds for side in sides]
    smallest = sorted(by_slice.items(), key=lambda item: (sum(item[1].values()), item[0]))
    rows: list[Sequence[str | int | Html]] = [
        (
            Html(f'<td class="unsure">{escape(name)} (thin)</td>')
            if 0 < told.get("train_pairs", 0) < thin
            else name,
            *(told.get(each, 0) for each in columns),
        )
        for name, told in smallest[:_MAX_SLICES]
    ]
    rest = len(smallest) - _MAX_SLICES
    more = f"<p>and {rest:,} larger ones</p>" if rest > 0 else ""
    shown = table(("slice", *(name.replace("_", " ") for name in columns)), rows)
    return Html(shown + more)


def _lengths(lengths: Mapping[str, Sequence[float]]) -> Html:
    figure = blank(9, 2.8)
    axis = figure.subplots(gridspec_kw={"left": 0.08, "right": 0.99, "bottom": 0.2, "top": 0.98})
    for name, colour in (("chosen", "#2f6fab"), ("rejected", "#c2571a")):
        axis.stairs(lengths[name], lengths["edges"], label=name, color=colour, linewidth=1.4)
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.xaxis.set_major_formatter("{x:,.0f}")  # 1,000 for 10³, and without typesetting either
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
        f"<p>chosen is the longer one in {told['chosen_longer']:.1%} "
        f"[{told['low']:.1%}, {told['high']:.1%}] of {told['n']:,} training pairs with answers of "
        f"unlike length, {told['length_ratio']:.2f} times as long on average. A model learns that, "
        "too.</p>"
    )


def _tokens(told: Mapping[str, Mapping[str, int]]) -> Html:
    names = ("p50", "p95", "p99", "max")
    return table(
        ("of kept pairs", "middle", "95 of 100 at most", "99 of 100 at most", "longest"),
        (
            (what.removesuffix("_tokens"), *(lengths[name] for name in names))
            for what, lengths in told.items()
        ),
    )


def _findings(told: Mapping[str, int], counts: Mapping[str, Any]) -> Html:
    out = counts["quarantined"]
    return table(
        ("finding", "rows", "taken out for it"),
        ((name, count, out.get(name, "")) for name, count in told.items()),
    )


def _languages(told: Mapping[str, int]) -> Html:
    return table(("language", "rows kept"), told.items())


def _agreement(told: Mapping[str, Any], labels: Mapping[str, int]) -> str:
    decided = ", ".join(f"{count:,} {label}" for label, count in labels.items())
    rows: list[Sequence[str | int | Html]] = [
        (" and ".join(each["annotators"]), each["num_rows"], _kappa(each["kappa"]))
        for each in told["cohen_kappas"]
    ]
    return (
        f"<p>{told['num_annotators']:,} people voted on {told['num_rows']:,} pairs that two or "
        f"more of them saw; two votes on one pair are the same in {told['agreeing']:.1%}, Fleiss' "
        f"kappa is {_kappa(told['fleiss_kappa'])}. Pairs became {escape(decided)}.</p>"
        + table(("annotators", "pairs both saw", "Cohen's kappa"), rows)
    )


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.3f}"


def _near(told: Mapping[str, Any]) -> str:
    if not told["num_clusters"]:
        return ""
    return (
        f"<p>{told['num_prompts']:,} prompts hang together in {told['num_clusters']:,} clusters: "
        "they share most of their text, or their conversations begin alike. A cluster is on one "
        f"side of the split; the largest has {told['largest']:,} prompts.</p>"
        + table(("the first of it", "prompts"), told["such_as"].items())
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
