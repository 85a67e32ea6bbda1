"""The commands that reach a cluster: `dpoflow submit`, `logs`, `cancel`, `schedule …`.

Reads   the command line
Gives   `commands`, which stand beside the others; `schedule`, a group
Not     any work (on_cluster.py)
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dpoflow.contracts.errors import ConfigError
from dpoflow_pipelines.run import default_home, runnable
from dpoflow_pipelines.terminal import Images, Sets, standard_console

if TYPE_CHECKING:
    from dpoflow_pipelines.backends.kfp_api import KfpApi

commands = typer.Typer()
schedule = typer.Typer(help="Retrain by the clock, on a cluster.", no_args_is_help=True)

Home = Annotated[
    Path,
    typer.Option(
        "--home",
        envvar="DPOFLOW_HOME",
        help="Where it is noted what was submitted.",
        default_factory=default_home,
        show_default=".dpoflow",
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        envvar="KF_PIPELINES_ENDPOINT", help="Kubeflow Pipelines, such as http://127.0.0.1:8888."
    ),
]
Namespace = Annotated[
    str | None, typer.Option(help="Where pods run; placement.namespace if absent.")
]
Name = Annotated[str, typer.Argument(metavar="NAME")]


@commands.command()
def submit(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML to run.")],
    home: Home,
    sets: Sets = None,
    pipeline: Annotated[str, typer.Option(help="Which DAG: align or retrain.")] = "align",
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    images: Images = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, and tell what would be submitted.")
    ] = False,
) -> None:
    """Run a spec on a cluster, by Kubeflow Pipelines.

    The same command again goes on where it was cut off, and finds a run that is not over. Data
    and models must lie where pods see them: s3://, https://, hf://, MLflow, or a volume.

    Examples:

        dpoflow submit align.yaml --wait

        dpoflow submit align.yaml --set placement.train.gpus=8 --dry-run

        dpoflow submit align.yaml --endpoint https://kubeflow.example/pipeline --namespace team-a
    """
    from dpoflow.contracts.spec_file import load_spec
    from dpoflow_pipelines import on_cluster

    which = runnable(pipeline)
    loaded = load_spec(spec, on_cluster.in_namespace(sets, namespace))
    console, lock = standard_console(), on_cluster.lock_of(images)
    if dry_run:
        on_cluster.show_dry(console, loaded, which, lock)
        return
    on_cluster.submit_spec(
        console,
        loaded,
        home.resolve(),
        endpoint=endpoint,
        pipeline=which,
        images=lock,
        wait=wait,
    )


@commands.command()
def logs(
    home: Home,
    run_id: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Latest if absent.")] = None,
    task: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="On a cluster: train, evaluate, …")
    ] = None,
) -> None:
    """Print what a run's tasks printed; on a cluster, what its pods still hold.

    Example:

        dpoflow logs support-desk-1c0ffee0-001 train
    """
    from dpoflow_pipelines.on_cluster import show_logs

    show_logs(home.resolve(), run_id, task)


@commands.command()
def cancel(run_id: Annotated[str, typer.Argument(metavar="RUN")], home: Home) -> None:
    """End a run on a cluster. What it had done is kept, and the same submit continues it."""
    from dpoflow_pipelines.on_cluster import cancel_run

    cancel_run(standard_console(), home.resolve(), run_id)


@schedule.callback()
def _schedule() -> None:
    """Retrain by the clock: Kubeflow's recurring runs, one at a time, none for what was missed."""


def _api(endpoint: str | None, namespace: str | None) -> "KfpApi":
    from dpoflow.contracts.placement import PlacementConfig
    from dpoflow_pipelines.backends.kfp_api import KfpApi, endpoint_of

    return KfpApi(endpoint_of(endpoint), namespace or PlacementConfig().namespace)


@schedule.command("create")
def schedule_create(
    name: Name,
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML to run.")],
    home: Home,
    cron: Annotated[
        str | None, typer.Option(help="Six fields, seconds first, in the server's time zone.")
    ] = None,
    sets: Sets = None,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    images: Images = None,
    gitops: Annotated[
        bool, typer.Option("--gitops", help="Print the pipeline as resources, and submit nothing.")
    ] = False,
) -> None:
    """Run `retrain` of a spec by the clock; a schedule of that name is updated.

    On a team's server the schedule is yours: you do not approve what its runs make.

    Examples:

        dpoflow schedule create nightly align.yaml --cron "0 0 2 * * *"

        dpoflow schedule create nightly align.yaml --gitops > pipeline.yaml
    """
    from dpoflow.contracts.spec_file import load_spec
    from dpoflow_pipelines import on_cluster, schedules

    if gitops is (cron is not None):
        raise ConfigError("schedule create takes --cron, or --gitops, which knows no time")
    loaded = load_spec(spec, on_cluster.in_namespace(sets, namespace))
    lock = on_cluster.lock_of(images)
    if cron is None:
        typer.echo(schedules.gitops(loaded, on_cluster.SCHEDULED, lock), nl=False)
        return
    schedules.check_cron(cron)  # before anybody is asked
    api = _api(endpoint, loaded.placement.namespace)
    on_cluster.create_schedule(standard_console(), api, name, loaded, cron, home.resolve(), lock)


@schedule.command("list")
def schedule_list(endpoint: Endpoint = None, namespace: Namespace = None) -> None:
    """List schedules, and whether they are on."""
    from dpoflow_pipelines.on_cluster import show_schedules

    show_schedules(standard_console(), _api(endpoint, namespace))


@schedule.command("pause")
def schedule_pause(name: Name, endpoint: Endpoint = None, namespace: Namespace = None) -> None:
    """Begin no more runs; one that goes on is left alone."""
    from dpoflow_pipelines import schedules

    schedules.pause(_api(endpoint, namespace), name)
    typer.echo(f"{name} is paused; dpoflow schedule resume {name} goes on")


@schedule.command("resume")
def schedule_resume(name: Name, endpoint: Endpoint = None, namespace: Namespace = None) -> None:
    """Go on with the next time; see backfill for what was missed."""
    from dpoflow_pipelines import schedules

    schedules.resume(_api(endpoint, namespace), name)
    typer.echo(f"{name} goes on with its next time")


@schedule.command("trigger")
def schedule_trigger(name: Name, endpoint: Endpoint = None, namespace: Namespace = None) -> None:
    """Run it now, too."""
    from dpoflow_pipelines import schedules
    from dpoflow_pipelines.backends.cluster import link_of

    api = _api(endpoint, namespace)
    typer.echo(link_of(api.endpoint, schedules.trigger(api, name)))


@schedule.command("backfill")
def schedule_backfill(
    name: Name,
    since: Annotated[str, typer.Option(help="Such as 2026-01-31T02:00; UTC unless it says.")],
    endpoint: Endpoint = None,
    namespace: Namespace = None,
) -> None:
    """Run it once, if no run of it goes on, nor succeeded that began since then.

    Once, however many were missed: each run takes all the data that there is.
    """
    from dpoflow_pipelines import on_cluster, schedules
    from dpoflow_pipelines.backends.cluster import link_of

    api = _api(endpoint, namespace)
    made = schedules.backfill(api, name, on_cluster.moment(since))
    typer.echo(link_of(api.endpoint, made) if made else "nothing was missed")


@schedule.command("delete")
def schedule_delete(name: Name, endpoint: Endpoint = None, namespace: Namespace = None) -> None:
    """Away with it; its runs stay."""
    from dpoflow_pipelines import schedules

    schedules.delete(_api(endpoint, namespace), name)
    typer.echo(f"{name} is deleted; its runs stay")
