"""A spec in a few lines, and what is worth a word before it runs.

Reads   a spec
Gives   `show_spec`, `show_warnings`
Not     the data (plan.py), what is paid (spending.py)
"""

import os
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dpoflow.contracts.judges import JudgeConfig, models_in, rewards_in
from dpoflow.contracts.spec import RetrainConfig, RunnableName, Spec, TrainSpec
from dpoflow_pipelines.spending import endpoints_of


def show_spec(
    console: Console,
    spec: Spec,
    points: Sequence[Sequence[str]] = (),
    pipeline: RunnableName = "align",
) -> None:
    """What would run; `points` are those of a sweep."""
    console.print(f"[bold]{escape(spec.name)}[/]: the spec is sound, and nothing was run")
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 2))
    for step, told in _steps(spec):
        table.add_row(step, escape(told))
    if pipeline == "retrain":
        table.add_row("retrain", escape(_when(spec.retrain)))
    for number, sets in enumerate(points, start=1):
        table.add_row(f"point {number}", escape(" ".join(sets)))
    console.print(table)
    console.print(
        "--json prints the whole spec; dpoflow plan tells pairs, memory and time", highlight=False
    )


def _steps(spec: Spec) -> Iterator[tuple[str, str]]:
    data, synthesize, train = spec.data, spec.synthesize, spec.train
    sources = ", ".join(source.uri for source in data.sources)
    yield "model", spec.model
    yield "data", f"{sources}; {data.heldout_fraction:.0%} of the prompts held out"
    writers = ", ".join(f"{each.candidates} of {each.name}" for each in synthesize.writers)
    made = f"candidates: {writers}; {_judged(synthesize.judge)}"
    yield "synthesize", made if synthesize.enabled else "off"
    yield "train", f"{train.loss}, beta {train.beta:g}, {train.method}, {_pace(train)}"
    yield "evaluate", _judged(spec.evaluate.judge)


def _when(retrain: RetrainConfig) -> str:
    """What makes a retraining train."""
    told = [f"trains without a champion, and at {retrain.min_new_pairs:,} new pairs"]
    if retrain.max_age_days is not None:
        told.append(f"at one if the champion is older than {retrain.max_age_days:g} days")
    if retrain.more_thumbs_down is not None:
        told.append(f"at {retrain.more_thumbs_down:g} more thumbs down")
    if retrain.changed_spec:
        told.append("at a changed spec")
    return ", ".join(told)


def _pace(train: TrainSpec) -> str:
    return (
        f"learning rate {train.learning_rate:g}, epochs {train.epochs:g}, batches of "
        f"{train.batch_size}, device {train.device}, {train.backend}"
    )


def _judged(judge: JudgeConfig | None) -> str:
    if judge is None:
        return "no judge"
    models = [each.endpoint.model for each in models_in(judge)]
    named = ", ".join([*models, *(each.model for each in rewards_in(judge))])
    return f"judged by {judge.kind}{f' ({named})' * bool(named)}"


def show_warnings(console: Console, spec: Spec) -> None:
    """What would not stop the run, or not yet."""
    for told in _warnings(spec):
        console.print(f"[yellow]warning:[/] {escape(told)}", highlight=False)


def _warnings(spec: Spec) -> Iterator[str]:
    named = dict.fromkeys(each.api_key_env for each in endpoints_of(spec) if each.api_key_env)
    for variable in named:
        if not os.environ.get(variable, "").strip():
            yield f"{variable} is not set; the run will need it: export {variable}=…"
    if spec.evaluate.judge is None:
        yield (
            "evaluate has no judge, so the verdict cannot be promote; set evaluate.judge, such as "
            "--set 'evaluate.judge={rubric: FILE.yaml}' with checks like those in "
            "pipelines/configs/rubrics/plain_answers.yaml"
        )
