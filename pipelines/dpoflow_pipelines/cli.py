"""The command `dpoflow`.

Reads   the command line
Gives   `main`; errors are one line that says who must act, and the exit code says it again
Not     any work: each command calls what does it
"""

import contextlib
import os
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.exceptions import TyperException

from dpoflow.contracts.errors import ConfigError, DpoflowError, GateNotPassed
from dpoflow.state.machine import set_thread_defaults
from dpoflow_pipelines.cluster_cli import commands as of_clusters
from dpoflow_pipelines.cluster_cli import schedule
from dpoflow_pipelines.review_cli import review
from dpoflow_pipelines.run import default_home, runnable
from dpoflow_pipelines.terminal import Sets, standard_console

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dpoflow.contracts.spec import Spec
    from dpoflow_pipelines.backends.laptop import Runner
    from dpoflow_pipelines.grid import Point

app = typer.Typer(
    name="dpoflow",
    help="Direct Preference Optimization as a Kubeflow pipeline, tracked in MLflow.\n\n"
    "With `--debug`, anywhere, an error brings its traceback.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dpoflow {version('dpoflow')}")
        raise typer.Exit


@app.callback()
def everywhere(
    *,
    is_version_asked: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print it, and end."),
    ] = False,
) -> None:
    """Take what goes with no command."""


Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="DPOFLOW_HOME",
        help="Where runs, state and the local MLflow live.",
        default_factory=default_home,
        show_default=".dpoflow",
    ),
]
Grid = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=A,B", help="Train once with each value; repeat for a grid."),
]
SpecFile = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML to run.")]


def _load(spec: Path, sets: list[str] | None, grid: list[str] | None) -> "tuple[Spec, list[Point]]":
    """The spec, and the points of a sweep; then the spec is the first of them."""
    from dpoflow.contracts.spec_file import load_spec
    from dpoflow_pipelines.grid import points_of

    points = points_of(spec, sets or [], grid) if grid else []
    return points[0].spec if points else load_spec(spec, sets or []), points


def _check_run(
    pipeline: str, grid: list[str] | None, require: str | None, *, as_json: bool, dry_run: bool
) -> None:
    """Whether the options of `run` go together."""
    if require not in (None, "promote"):
        raise ConfigError(f"--require takes promote, got '{require}'")
    if grid and pipeline != "align":
        raise ConfigError(f"--grid goes with --pipeline align, not with {pipeline}")
    if as_json and not dry_run:
        raise ConfigError("--json goes with --dry-run; a run leaves its facts in summary.json")
    if require and grid:
        raise ConfigError("--require asks one candidate for its verdict, and --grid has several")


def _check_place(place: str, memory: str | None) -> None:
    if place not in ("processes", "containers"):
        raise ConfigError(
            f"--on takes processes or containers, got '{place}'; for a cluster: dpoflow submit"
        )
    if memory and place != "containers":
        raise ConfigError("--memory goes with --on containers; a process takes what it needs")
    if place == "containers":
        from dpoflow_pipelines.backends.containers import check_memory

        check_memory(memory)


@contextlib.contextmanager
def _started_on(
    place: str, specs: "Sequence[Spec]", home: Path, memory: str | None
) -> "Iterator[Runner | None]":
    """How tasks are started; None for processes of this machine."""
    if place == "processes":
        yield None
        return
    from dpoflow_pipelines.backends.containers import in_containers

    with in_containers(specs, home, memory=memory) as runner:
        yield runner


@app.command()
def run(
    spec: SpecFile,
    home: Home,
    sets: Sets = None,
    grid: Grid = None,
    pipeline: Annotated[
        str, typer.Option(help="align, or retrain: align only where there is something to learn.")
    ] = "align",
    require: Annotated[
        str | None,
        typer.Option(
            help="Exit 4 unless the verdict is this: promote. A retrain that found nothing to "
            "learn has no candidate, and exits 0."
        ),
    ] = None,
    place: Annotated[
        str,
        typer.Option(
            "--on", help="processes, or containers: each task in its image, by podman or docker."
        ),
    ] = "processes",
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most that a container may take, such as 8g."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the spec and tell what would run.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --dry-run: the whole spec, its defaults filled in.")
    ] = False,
) -> None:
    """Run a spec on this machine, or continue the run that was cut off.

    Examples:

        dpoflow run pipelines/configs/demo.yaml

        dpoflow run pipelines/configs/hh_rlhf.yaml --set data.max_pairs=64 --set train.beta=0.05

        dpoflow run pipelines/configs/demo.yaml --dry-run

        dpoflow run pipelines/configs/demo.yaml --require promote   # for scripts: exit 4 otherwise

        dpoflow run align.yaml --grid train.beta=0.05,0.1,0.3 --grid train.loss=sigmoid,ipo_sum

        dpoflow run align.yaml --pipeline retrain         # nightly: trains if `retrain:` says so

        dpoflow run align.yaml --on containers --memory 8g    # as images of `make images`
    """
    from dpoflow_pipelines.grid import show_points
    from dpoflow_pipelines.outline import show_spec, show_warnings
    from dpoflow_pipelines.run import check_sources, check_suites
    from dpoflow_pipelines.spending import check_judges, show_spending

    which = runnable(pipeline)
    _check_run(which, grid, require, as_json=as_json, dry_run=dry_run)
    _check_place(place, memory)
    loaded, points = _load(spec, sets, grid)
    console = standard_console()
    check_suites(loaded)
    check_sources(loaded)
    check_judges(loaded, keys=not dry_run)  # a dry run sends nothing
    specs = [point.spec for point in points] or [loaded]
    if dry_run:
        aside = console
        if as_json:  # a program reads standard output
            aside = Console(stderr=True, emoji=False, soft_wrap=True)
            for each in specs:
                console.print_json(each.model_dump_json())
        else:
            show_spec(console, loaded, [point.sets for point in points], which)
        show_spending(aside, loaded, num_points=len(specs))
        show_warnings(aside, loaded)
        return
    from dpoflow_pipelines.run import check_machine, run_spec
    from dpoflow_pipelines.show import show_cost, show_files, show_summary

    for each in specs:
        check_machine(each)
    show_warnings(console, loaded)
    home = home.resolve()
    with _started_on(place, specs, home, memory) as runner:
        if points:
            summary = run_spec(loaded, home, console, points=points, runner=runner)
            show_points(console, summary, spec, home, sets or [])
            show_cost(console, summary)
            show_files(console, home, summary)
            return
        try:
            summary = run_spec(
                loaded, home, console, require=require, pipeline=which, runner=runner
            )
        except GateNotPassed:
            from dpoflow_pipelines.show import show_verdict

            show_verdict(console, home)
            raise
    show_summary(console, summary, home)


@app.command()
def plan(
    spec: SpecFile,
    sets: Sets = None,
    grid: Grid = None,
    gpu: Annotated[
        list[str] | None, typer.Option(help="Only this kind of GPU; repeatable.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many train together.")] = 1,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of one GPU for an hour, in your currency.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Estimate memory, hours and money of a training, before anything is spent.

    Reads the data and the model's config, no weights, and runs nothing.

    Examples:

        dpoflow plan pipelines/configs/demo.yaml

        dpoflow plan align.yaml --gpu A100-80 --gpus 4 --price 2.5 --set train.batch_size=32

        dpoflow plan align.yaml --grid train.beta=0.05,0.1,0.3
    """
    from dpoflow_pipelines import plan as plans
    from dpoflow_pipelines.run import check_sources
    from dpoflow_pipelines.spending import expected_spending, show_spending

    for name in gpu or ():
        plans.machine_named(name)
    loaded, points = _load(spec, sets, grid)
    check_sources(loaded)
    made = plans.plan_specs(
        [(point.sets, point.spec) for point in points] or [((), loaded)], devices=gpus
    )
    here, many = plans.measured_here(loaded), len(made)
    console = standard_console()
    if as_json:
        spending = expected_spending(loaded, num_points=many).model_dump(mode="json")
        told = plans.as_json(made, here, gpu or [], price)
        console.print_json(data=told | {"asked": spending["models"]})
    else:
        plans.show_plans(console, made, here, gpu or [], price)
        show_spending(console, loaded, num_points=many)


@app.command()
def compile(
    pipeline: Annotated[str, typer.Argument(help="Which DAG: align, retrain or promote.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the YAML goes.")],
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Whose placement its tasks get.")
    ] = None,
    sets: Sets = None,
    images: Annotated[
        Path | None,
        typer.Option(help="A lock of images; infra/images/images.lock if absent."),
    ] = None,
) -> None:
    """Compile a DAG to the YAML that Kubeflow Pipelines takes.

    With a SPEC its tasks have their secrets, volumes and GPUs, and a cluster can run it; without,
    only their retries, deadlines and caching.

    Example:

        dpoflow compile align -o align.yaml

        dpoflow compile retrain align.yaml -o retrain.yaml --images images.lock

        dpoflow compile promote align.yaml -o promote.yaml      # for a schedule of the promoter
    """
    from typing import get_args

    from dpoflow.contracts.spec import PipelineName
    from dpoflow_pipelines.run import compile_to

    known: dict[str, PipelineName] = {name: name for name in get_args(PipelineName)}
    if pipeline not in known:
        raise ConfigError(f"no pipeline '{pipeline}'; known: {', '.join(known)}")
    if not output.parent.is_dir():
        raise ConfigError(f"no folder {output.parent} to write {output.name} into")
    if output.is_dir():
        raise ConfigError(
            f"{output} is a folder; name a file in it, such as {output}/{pipeline}.yaml"
        )
    there = output.read_bytes() if output.is_file() else b""
    if there and not there.startswith(b"# PIPELINE DEFINITION"):
        raise ConfigError(f"{output} is there and no compiled pipeline; name another file")
    if spec is None:
        if sets or images:
            raise ConfigError("--set and --images say where tasks run: name the SPEC, too")
        compile_to(output, known[pipeline])
        return
    from dpoflow.contracts.spec_file import load_spec
    from dpoflow_pipelines.backends.cluster import compiled_for
    from dpoflow_pipelines.on_cluster import lock_of

    loaded = load_spec(spec, sets or [])
    for image in compiled_for(loaded, output, known[pipeline], lock_of(images)):
        standard_console().print(image, markup=False, highlight=False)


@app.command()
def schema() -> None:
    """Print the JSON Schema of a spec; editors complete and check YAML with it."""
    import json

    from dpoflow.contracts.spec import Spec

    typer.echo(json.dumps(Spec.model_json_schema(), indent=2))


@app.command()
def status(
    home: Home,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Latest if absent.")] = None,
) -> None:
    """Show how far a run is, or how it ended."""
    from dpoflow_pipelines.show import show_status

    show_status(standard_console(), home.resolve(), run_id)


@app.command()
def trace(
    version: Annotated[str, typer.Argument(metavar="NAME/VERSION")],
    home: Home,
    pair: Annotated[
        str | None, typer.Option(help="Follow one training pair (an id, or its first digits).")
    ] = None,
) -> None:
    """Walk from a model version through evaluation, training and pairs to the sources.

    Every file on the way is hashed again; one changed byte ends the walk with exit code 3.

    Example:

        dpoflow trace demo/1 --home build/demo
    """
    from dpoflow_pipelines.show import show_trace

    show_trace(standard_console(), home.resolve(), version, pair)


@app.command()
def gc(
    home: Home,
    keep: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each spec's name that stay.")
    ] = 5,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what would go, and delete nothing.")
    ] = False,
) -> None:
    """Delete from a home what neither its latest runs nor a version with an alias rests on.

    `dpoflow trace` walks to the sources for every version that an alias names and for those of the
    runs that stay; a version without an alias stays in MLflow, and its chain ends. Answers that
    were paid for stay. Not for a cluster's volume: the runs there are not known by their names.

    Examples:

        dpoflow gc --keep 3 --dry-run

        dpoflow gc --keep 3 --home build/demo
    """
    from dpoflow_pipelines import gc as clearing
    from dpoflow_pipelines.runs import in_use

    console, home = standard_console(), home.resolve()
    if not dry_run:
        clearing.show(console, home, clearing.collect(home, keep), done=True)
        return
    if not (home / "runs").is_dir():
        raise ConfigError(f"no run under {home}, so there is nothing to clear; name a --home")
    with in_use(home):
        clearing.show(console, home, clearing.survey(home, keep), done=False)


@app.command()
def doctor(
    home: Home,
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="With --cluster: what it must run.")
    ] = None,
    sets: Sets = None,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="The cluster that kubectl works with, instead.")
    ] = False,
) -> None:
    """Check that this machine, or a cluster, can run dpoflow, and say what to do where it cannot.

    Examples:

        dpoflow doctor

        dpoflow doctor --cluster                 # what infra/cluster installs

        dpoflow doctor align.yaml --cluster      # and what this spec needs
    """
    from dpoflow_pipelines.doctor import examine, show

    if not cluster and (spec or sets):
        raise ConfigError("doctor takes a SPEC and --set with --cluster alone")
    if cluster:
        from dpoflow.contracts.spec_file import load_spec
        from dpoflow_pipelines.doctor_cluster import all_findings, plain_spec

        wanted = load_spec(spec, sets or []) if spec else plain_spec()
        raise typer.Exit(show(standard_console(), all_findings(wanted)))
    raise typer.Exit(examine(standard_console(), home))


@app.command()
def server(
    home: Home,
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen at.")] = 5000,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend-store",
            envvar="MLFLOW_BACKEND_STORE_URI",
            help="postgresql://…, best through the environment; sqlite under the home if absent.",
            show_envvar=True,
        ),
    ] = None,
    artifacts: Annotated[
        str | None,
        typer.Option(help="s3://BUCKET/PREFIX or a folder; a folder under the home if absent."),
    ] = None,
    allowed_hosts: Annotated[
        str | None,
        typer.Option(help="Names that clients may call the server by, with commas between."),
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that answer; 2 if absent.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and tell the command, without secrets.")
    ] = False,
) -> None:
    """MLflow's server with the approval gate: only what a reviewer approved becomes champion.

    Secrets and roles come from the environment: MLFLOW_FLASK_SERVER_SECRET_KEY, a key of
    DPOFLOW_AUDIT_KEY_FILE, a YAML file DPOFLOW_ROLES (`reviewer: [rita]`), DPOFLOW_TRUSTED_SIGNERS,
    and MLFLOW_AUTH_ADMIN_PASSWORD at the first start.

    Examples:

        dpoflow server                                   # one person: sqlite, files under the home

        dpoflow server --dry-run

        dpoflow server --host 0.0.0.0 --allowed-hosts mlflow.example.org --artifacts s3://models/prod
    """
    from dpoflow_pipelines.server import Serving, serve

    serving = Serving(home, host, port, backend, artifacts, allowed_hosts, workers)
    serve(serving, standard_console(), dry_run=dry_run)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(metavar="NAME@champion", help="Or NAME/VERSION.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Download a model from a team's server, and hand it over only if it is what was approved.

    Every file is hashed against the evidence, and the evidence against the audit log, before DIR
    is there. DIR is what transformers and vLLM load. Given again, it hashes what is there.

    Examples:

        dpoflow pull support-desk@champion models/support-desk

        dpoflow pull support-desk/3 models/support-desk-3 && vllm serve models/support-desk-3
    """
    from dpoflow.registry.pull import pull as pull_model
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.show import show_pulled

    aside = Console(stderr=True, emoji=False, soft_wrap=True)
    pulled = pull_model(
        asked_team(), name, folder, lambda line: aside.print(line, markup=False, highlight=False)
    )
    show_pulled(standard_console(), pulled, as_json=as_json)


@app.command()
def step(
    name: Annotated[str, typer.Argument(help="snapshot, validate, synthesize, merge, train, …")],
    home: Home,
    config: Annotated[Path, typer.Option(help="The step's own section, as YAML or JSON.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--in", metavar="NAME=PATH", help="An input artifact.")
    ] = None,
    outputs: Annotated[
        list[str] | None, typer.Option("--out", metavar="NAME=PATH", help="Where an output goes.")
    ] = None,
) -> None:
    """Run any step alone; prints its result as JSON. Each step's README says what it takes.

    Example:

        dpoflow step synthesize --config s.yaml --in prompts=DIR --in model=DIR --out pairs=DIR
    """
    from dpoflow_pipelines.steps import run_step

    typer.echo(run_step(name, config, inputs or [], outputs or [], home.resolve()))


judges = typer.Typer(help="Judges: whether one may decide.", no_args_is_help=True)
app.add_typer(judges, name="judge")


@judges.callback()
def _judges() -> None:
    """Judges: whether one may decide."""


def _check_qualify(
    spec: Path | None,
    labelled: Path | None,
    verdicts: Path | None,
    of: str | None,
    require: str | None,
    *,
    asks: bool,
) -> None:
    """Whether the options of `judge qualify` go together."""
    if require not in (None, "qualified"):
        raise ConfigError(f"--require takes qualified, got '{require}'")
    if of not in (None, "synthesize", "evaluate"):
        raise ConfigError(f"--of takes synthesize or evaluate, got '{of}'")
    if (labelled is None) == (verdicts is None):
        raise ConfigError("name either --labelled FILE and a SPEC, or --verdicts FILE")
    if verdicts is not None and (spec or asks):
        raise ConfigError("--verdicts asks nobody: leave SPEC, --set, --of and --dry-run out")
    if verdicts is None and spec is None:
        raise ConfigError("--labelled asks a judge: name the SPEC that has it")


@judges.command("qualify")
def judge_qualify(
    home: Home,
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC]", help="Whose judge is asked.")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Pairs that people labelled; the judge is asked about each.")
    ] = None,
    verdicts: Annotated[
        Path | None, typer.Option(help="Verdicts that were recorded elsewhere; nobody is asked.")
    ] = None,
    of: Annotated[
        str | None, typer.Option(help="Whose judge: synthesize or evaluate, if both have one.")
    ] = None,
    sets: Sets = None,
    least_kappa: Annotated[
        float, typer.Option(min=-1, max=1, help="That kappa's interval must reach.")
    ] = 0.4,
    least_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Share on which both orders must agree.")
    ] = 0.8,
    out: Annotated[
        Path | None, typer.Option(help="Write the report, for qualification: in the spec's judge.")
    ] = None,
    require: Annotated[
        str | None, typer.Option(help="Exit 4 unless the judge is this: qualified.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Tell what asking would cost at most, and ask nobody.")
    ] = False,
) -> None:
    """Hold a judge against people's labels, in both orders of the answers.

    Labelled pairs: LLMBar's dataset.json, JSON lines of prompt, first, second, label (1, 2 or tie),
    or preference pairs as sources have them. Verdicts: LLMBar's result.json, or JSON lines of
    label, forward, swapped, each the answer as the file numbers it (1, 2, tie or invalid), also in
    the swapped order.

    Examples:

        dpoflow judge qualify align.yaml --labelled labelled.jsonl --out judge.json

        dpoflow judge qualify align.yaml --labelled labelled.jsonl --dry-run

        dpoflow judge qualify --verdicts verdicts.jsonl --json
    """
    from dpoflow_pipelines import judges as of_judges

    _check_qualify(spec, labelled, verdicts, of, require, asks=bool(sets or of or dry_run))
    console = standard_console()
    if verdicts is not None:
        report = of_judges.qualify_verdicts(verdicts, least_kappa, least_agreement)
    else:
        from dpoflow.contracts.spec_file import load_spec

        assert spec is not None
        assert labelled is not None
        loaded = load_spec(spec, sets or [])
        judge, half = of_judges.judge_of(loaded, of)
        if dry_run:
            of_judges.show_cost(console, of_judges.expected_cost(judge, labelled))
            return
        # A program reads standard output: the bar goes elsewhere.
        bars = Console(stderr=True, emoji=False) if as_json else console
        report = of_judges.qualify_judge(
            judge, half, labelled, home.resolve(), bars, least_kappa, least_agreement
        )
        from dpoflow.tracking.qualification import log_qualification

        log_qualification(home, loaded.name, report, loaded.model_dump_json())
    if out is not None:
        from dpoflow.state.files import write_text

        write_text(out, report.model_dump_json(indent=2) + "\n")
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        of_judges.show_qualification(console, report)
    if require and not report.qualified:
        raise GateNotPassed(report.sentence)


app.add_typer(of_clusters)
app.add_typer(schedule, name="schedule")
app.add_typer(review, name="review")

evals = typer.Typer(help="Figures of published benchmarks.", no_args_is_help=True)
app.add_typer(evals, name="eval")
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@evals.command("alpaca")
def eval_alpaca(
    annotations: Annotated[Path, typer.Option(help="annotations.json of alpaca-eval.")],
    difficulty: Annotated[
        Path | None, typer.Option(help="CSV: index, instruction_difficulty.")
    ] = None,
    gamed: Annotated[
        Path | None, typer.Option(help="df_gamed.csv: what length is worth by itself.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """AlpacaEval 2: win rate against the baseline, raw and at equal length, in percent.

    Annotations: a JSON list or JSON lines of instruction, output_1 (baseline), output_2 (model),
    preference (1 the baseline, 2 the model, anything between; 0 or 1.5 a draw, null unknown).
    For instructions of your own leave --difficulty and --gamed out. With --gamed alone its file
    says the difficulties.

    Examples:

        dpoflow eval alpaca --annotations annotations.json

        dpoflow eval alpaca --annotations annotations.json --gamed df_gamed.csv --json
    """
    from dpoflow.evaluate.alpaca import score_alpaca
    from dpoflow_pipelines.scores import show_alpaca

    scores = score_alpaca(annotations, difficulty, gamed)
    if as_json:
        typer.echo(scores.model_dump_json(indent=2))
    else:
        show_alpaca(standard_console(), scores)


@evals.command("mt-bench")
def eval_mt_bench(
    judgements: Annotated[Path, typer.Option(help="FastChat's …_single.jsonl.")],
    questions: Annotated[
        Path | None, typer.Option(help="question.jsonl, for categories of your own.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which, where the file has several.")] = None,
    as_json: AsJson = False,
) -> None:
    """MT-Bench: mean scores of both turns and of each category, 1 to 10.

    Judgements: JSON lines of question_id, model, turn (1 or 2), score (-1: no rating was found).

    Example:

        dpoflow eval mt-bench --judgements gpt-4_single.jsonl --model vicuna-13b-v1.3
    """
    from dpoflow.evaluate.mt_bench import score_mt_bench
    from dpoflow_pipelines.scores import show_mt_bench

    scores = score_mt_bench(judgements, questions, model)
    if as_json:
        typer.echo(scores.model_dump_json(indent=2))
    else:
        show_mt_bench(standard_console(), scores)


@evals.command("xstest")
def eval_xstest(
    completions: Annotated[Path, typer.Option(help="A CSV of XSTest with completions.")],
    as_json: AsJson = False,
) -> None:
    """XSTest: how much of what is safe is refused, and how much of what is not.

    Completions: CSV with type, completion, and final_label where people labelled them; without it
    the opening of each answer says whether it refuses.

    Example:

        dpoflow eval xstest --completions xstest_v2_completions_gpt4.csv --json
    """
    from dpoflow.evaluate.xstest import score_xstest
    from dpoflow_pipelines.scores import show_xstest

    scores = score_xstest(completions)
    if as_json:
        typer.echo(scores.model_dump_json(indent=2))
    else:
        show_xstest(standard_console(), scores)


@evals.command("arena-hard")
def eval_arena_hard(
    judgements: Annotated[Path, typer.Option(help="model_judgment: a file, or a judge's folder.")],
    answers: Annotated[
        Path | None, typer.Option(help="model_answer: a file or folder; for style control.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Judged against which, where judgements do not say.")
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="Which, where judgements have several.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Arena-Hard-Auto: each model's win rate against the baseline, in percent, with its interval.

    Judgements: JSON lines of question_id (v2.0: uid), model, judge, games; v2.0 also has category
    and baseline. Each game has a score: A>>B, A>B, A=B, B>A, B>>A, or null. The baseline is A in
    the first game and B in the second. Answers: JSON lines of question_id, model_id, conv_metadata
    (v2.0: uid, model, metadata) with token_len, header_count, list_count, bold_count, of every
    model and of the baseline.

    Examples:

        dpoflow eval arena-hard --judgements model_judgment/gpt-4-1106-preview --baseline gpt-4-0314

        dpoflow eval arena-hard --judgements model_judgment/gpt-4.1 --category hard_prompt

        dpoflow eval arena-hard --judgements mine.jsonl --answers model_answer --json
    """
    from dpoflow.evaluate.arena_hard import score_arena_hard
    from dpoflow_pipelines.scores import show_arena_hard

    scores = score_arena_hard(judgements, answers, baseline, category)
    if as_json:
        typer.echo(scores.model_dump_json(indent=2))
    else:
        show_arena_hard(standard_console(), scores)


labels = typer.Typer(help="People's preferences, given in MLflow.", no_args_is_help=True)
app.add_typer(labels, name="label")
Experiment = Annotated[
    str, typer.Option(metavar="NAME", help="The MLflow experiment that holds the queues.")
]


@labels.command("create")
def label_create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Comparisons to be answered.")],
    name: Annotated[str, typer.Option(metavar="QUEUE", help="What the queue is called.")],
    reviewers: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="MLflow users; each answers every comparison."),
    ] = None,
    experiment: Experiment = "preference-labels",
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="At most so many, drawn by hash.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be made.")] = False,
) -> None:
    """Ask people in MLflow which of two answers is better.

    FILE: an evaluation's answers.jsonl, preference pairs in any format of sources (a step's
    pairs.parquet, too), or JSON lines of prompt (text or messages), first, second, perhaps slice.
    A hash says which answer stands on the left, for each reviewer anew.

    With --reviewers each has a queue of their own, QUEUE/NAME, and does not see what others said.
    Without, there is one queue: each comparison is answered once. The same file and names again
    add nothing twice. Needs MLFLOW_TRACKING_URI, a server with users, and MANAGE on the experiment;
    one that is not there is made.

    Examples:

        dpoflow label create answers.jsonl --name spring --reviewers ann,ben --max 200

        dpoflow label create pairs.parquet --name disputed --experiment support-desk-labels

        dpoflow label create mine.jsonl --name spring --reviewers ann --dry-run
    """
    import re

    from dpoflow_pipelines import labels as of_labels

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigError(
            f"--name takes letters, digits, points, dashes and underscores, got {name!r}"
        )
    console, people = standard_console(), of_labels.reviewers_of(reviewers)
    read = of_labels.read_comparisons(file)
    asked = of_labels.drawn(read.comparisons, most)
    of_labels.show_read(console, read, asked)
    if dry_run:
        of_labels.show_plan(console, asked, experiment, name, people)
        return
    from dpoflow.tracking.labels import create

    created = create(asked, experiment, name, people)
    of_labels.show_created(console, created, experiment, name, people)


@labels.command("status")
def label_status(
    name: Annotated[str, typer.Argument(metavar="QUEUE")],
    experiment: Experiment = "preference-labels",
) -> None:
    """Show who has answered how much, and what is open.

    Example:

        dpoflow label status spring
    """
    from dpoflow.tracking.labels import progress_of
    from dpoflow_pipelines.labels import show_progress

    show_progress(standard_console(), progress_of(experiment, name))


def _fail(message: str, code: int) -> NoReturn:
    Console(stderr=True, emoji=False, soft_wrap=True).print(
        f"[bold red]error:[/] {escape(message)}", highlight=False
    )
    sys.exit(code)


def main() -> NoReturn:
    """Entry point of the console script."""
    set_thread_defaults()  # before any command imports torch
    debug = "--debug" in sys.argv or bool(os.environ.get("DPOFLOW_DEBUG"))
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        code = app(args=arguments, prog_name="dpoflow", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except DpoflowError as error:
        if debug:
            traceback.print_exc()
        _fail(str(error), error.exit_code)
    except TyperException as error:
        message = getattr(error, "format_message", error.__str__)()
        if not message:  # no command was given, and the help is printed
            sys.exit(ConfigError.exit_code)
        _fail(f"{message} See: dpoflow --help", ConfigError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; the same command continues", 130)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error}; the same command continues once that is mended", ConfigError.exit_code)
    except Exception as error:
        if debug:
            raise
        _fail(f"a bug of ours: {type(error).__name__}: {error} (--debug shows where)", 1)
