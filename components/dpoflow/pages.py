"""What the pages that steps write have in common: one file each, that asks the network for nothing.

Reads   texts, which are escaped here; `Html`, which its maker answers for; figures of matplotlib
Gives   `document`, `table`, `blank`, `drawing`, `Html`; `show`: what Kubeflow shows of a task
Not     what a page tells: the step's own page.py
"""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem }
h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; margin: 1rem 0; width: 100% }
td, th { border: 1px solid #ccc; padding: .4rem .6rem; text-align: left; vertical-align: top }
td, p { overflow-wrap: anywhere } th:first-child { min-width: 9rem }
td.good, td.bad { white-space: nowrap } td.text { white-space: pre-wrap; width: 34% }
td.number { text-align: right; width: 6rem }
svg { height: auto; max-width: 100% }
.good { color: #146c2e } .bad { color: #b3261e } .unsure { color: #8a5a00 }
.alarm { background: #fff4e5; border-left: 4px solid #c2571a; padding: .4rem .8rem }
"""


class Html(str):
    """Markup, in which every text from outside is escaped already."""

    __slots__ = ()


def document(title: str, body: str, style: str = "") -> str:
    """A whole page. `body` is markup."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body>{body}</body></html>\n"
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str | int | Html]]) -> Html:
    """Cells of `Html` are whole `<td>…</td>`; numbers stand on the right, texts are escaped."""
    names = "".join(f"<th>{escape(name)}</th>" for name in header)
    head = f"<tr>{names}</tr>" if any(header) else ""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return Html(f"<table>{head}{body}</table>")


def text(content: str) -> Html:
    """A cell that keeps its line breaks."""
    return Html(f'<td class="text">{escape(content)}</td>')


def _cell(content: str | int | Html) -> str:
    if isinstance(content, Html):
        return content
    if isinstance(content, int):
        return f'<td class="number">{content:,}</td>'
    return f"<td>{escape(content)}</td>"


def blank(width: float, height: float) -> "Figure":
    """A figure of so many inches with nothing on it yet."""
    from matplotlib.figure import Figure  # where a picture is drawn, and no sooner

    return Figure(figsize=(width, height))


def drawing(figure: "Figure") -> Html:
    """The figure as SVG, the same bytes for the same figure."""
    import matplotlib as mpl

    drawn = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "dpoflow", "svg.fonttype": "none"}):
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()
    return Html(svg[svg.index("<svg") :])  # without the document's own head


def show(
    page: Path, figures: Mapping[str, float], at: str, log_metric: Callable[[str, float], None]
) -> None:
    """What Kubeflow shows of a task: the page itself, at the artifact's path, and figures."""
    Path(at).parent.mkdir(parents=True, exist_ok=True)
    Path(at).write_bytes(page.read_bytes())
    for name, number in figures.items():
        log_metric(name, number)
