"""`dpoflow judge qualify`: is this judge worth asking?

Reads   a spec's judge and labelled pairs, or verdicts recorded elsewhere
Gives   `qualify_judge`, `show_qualification`, `show_cost`
Not     the figures (dpoflow.judge.qualify)
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TimeRemainingColumn
from rich.table import Table

from dpoflow.contracts.errors import ConfigError
from dpoflow.contracts.judges import JudgeConfig, Qualification, rewards_in
from dpoflow.contracts.spec import Spec
from dpoflow.judge.build import Half, judge_id
from dpoflow.judge.estimate import Expected, of_labelled
from dpoflow.judge.labelled import Labelled, ask, read_labelled, read_verdicts
from dpoflow.judge.qualify import Item, qualify
from dpoflow.snapshot.model import Store, pin_judges
from dpoflow.state.files import writable_folder
from dpoflow_pipelines.spending import show_expected


def judge_of(spec: Spec, section: str | None) -> tuple[JudgeConfig, Half]:
    """The judge of that section; the only one, where none is named. And the checks it goes by."""
    judges = {
        name: judge
        for name, judge in (
            ("synthesize", spec.synthesize.judge),
            ("evaluate", spec.evaluate.judge),
        )
        if judge is not None and section in (None, name)
    }
    if not judges:
        raise ConfigError(f"the spec has no judge in {section or 'synthesize or evaluate'}")
    halves: dict[str, Half] = {"synthesize": "judge", "evaluate": "all"}
    if len({judge_id(judge, halves[name]) for name, judge in judges.items()}) > 1:
        raise ConfigError("synthesize and evaluate have judges of their own; name one with --of")
    name = next(iter(judges))
    return judges[name], halves[name]


def qualify_verdicts(path: Path, least_kappa: float, least_agreement: float) -> Qualification:
    """Of verdicts that somebody recorded."""
    items = read_verdicts(path)
    name = f"recorded:{path.name}"
    return qualify(name, items, least_kappa=least_kappa, least_agreement=least_agreement)


def qualify_judge(
    judge: JudgeConfig,
    half: Half,
    labelled: Path,
    home: Path,
    console: Console,
    least_kappa: float,
    least_agreement: float,
) -> Qualification:
    """Ask the judge about every labelled pair. Answers lie in the home, and are not paid twice."""
    pairs = read_labelled(labelled)
    items = _asked(judge, half, pairs, home, console)
    return qualify(
        judge_id(judge, half), items, least_kappa=least_kappa, least_agreement=least_agreement
    )


def _asked(
    judge: JudgeConfig, half: Half, pairs: Sequence[Labelled], home: Path, console: Console
) -> list[Item]:
    models = _pinned(judge, home, console)
    with Progress(
        *Progress.get_default_columns()[:-1],
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    ) as bars:
        bar = bars.add_task("judging", total=len(pairs))
        return ask(
            judge,
            pairs,
            half=half,
            kept=home / "answers.sqlite",
            payer=f"qualify {judge_id(judge, half)}",
            models=models,
            progress=lambda done, total: bars.update(bar, completed=done),
            tell=lambda told: console.print(escape(told), highlight=False),
        )


def _pinned(judge: JudgeConfig, home: Path, console: Console) -> Path | None:
    """The folder with the judge's reward models, if it has any."""
    uris = [each.model for each in rewards_in(judge)]
    if not uris:
        return None
    writable_folder(home, "the home")
    with tempfile.TemporaryDirectory(dir=home) as work:
        return pin_judges(uris, Store(home, Path(work), lambda told: console.print(escape(told))))


def expected_cost(judge: JudgeConfig, labelled: Path) -> Expected:
    """What qualifying would ask at most."""
    return of_labelled(judge, read_labelled(labelled))


def show_qualification(console: Console, report: Qualification) -> None:
    """The sentence first, then the figures behind it."""
    colour = "green" if report.qualified else "red"
    console.print(f"[bold {colour}]{escape(report.sentence)}[/]")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    low, high = report.kappa_ci
    table.add_row("judge", escape(report.judge))
    table.add_row("right, first order", f"{report.accuracy_forward:.1%}")
    table.add_row("right, swapped", f"{report.accuracy_swapped:.1%}")
    table.add_row("right in both", f"{report.both_correct:.1%}")
    table.add_row("orders agree", f"{report.positional_agreement:.1%}")
    if report.first_position_rate is not None:
        table.add_row("chose the one shown first", f"{report.first_position_rate:.1%}")
    table.add_row("could not be read", f"{report.invalid:.1%}")
    table.add_row("kappa", f"{report.kappa:.2f} [{low:.2f}, {high:.2f}]")
    if report.length_flip_rate is not None:
        table.add_row("gave the shorter one's win away", f"{report.length_flip_rate:.1%}")
    for name, part in report.slices.items():
        table.add_row(
            f"  {escape(name)}",
            f"right in both {part.both_correct:.1%}, orders agree {part.positional_agreement:.1%} "
            f"(n {part.n})",
        )
    console.print(table)


def show_cost(console: Console, expected: Expected) -> None:
    """What would be asked, model by model."""
    if not expected.models:
        console.print("no server would be asked")
    show_expected(console, expected, "at most")
