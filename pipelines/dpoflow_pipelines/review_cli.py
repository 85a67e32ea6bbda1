"""The commands `dpoflow review …`.

Reads   the command line
Gives   `review`, a group of commands
Not     any work (review.py)
"""

from typing import Annotated

import typer

from dpoflow.contracts.errors import ConfigError
from dpoflow_pipelines.terminal import standard_console

review = typer.Typer(help="Approve, promote and go back, on a team's server.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(metavar="NAME/VERSION")]
Reason = Annotated[str, typer.Option(help="Why, in words that others can follow.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


@review.callback()
def _review() -> None:
    """Approve, promote and go back, on a team's server.

    The server is MLFLOW_TRACKING_URI, and you are MLFLOW_TRACKING_USERNAME with
    MLFLOW_TRACKING_PASSWORD. Exit code 2: you may not; 4: the version may not; 3: files or log
    are not what they were; 5: try again later.
    """


@review.command("list")
def review_list(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="All if absent.")] = None,
    as_json: AsJson = False,
) -> None:
    """List versions with evidence: who submitted each, and where it stands.

    Aliases that are not what the log says are told at the end.

    Examples:

        dpoflow review list

        dpoflow review list support-desk --json
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import show_reviews

    show_reviews(asked_team(), standard_console(), model, as_json=as_json)


@review.command("show")
def review_show(version: Version, as_json: AsJson = False) -> None:
    """Show what a reviewer reads of a version.

    Example:

        dpoflow review show support-desk/3
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import show_review

    show_review(asked_team(), standard_console(), version, as_json=as_json)


@review.command("approve")
def review_approve(version: Version, reason: Reason) -> None:
    """Approve a version, as the tag `approval` on its page does.

    Example:

        dpoflow review approve support-desk/3 --reason "read 30 answers, none invented a price"
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import decide

    decide(asked_team(), standard_console(), version, "approve", reason)


@review.command("reject")
def review_reject(version: Version, reason: Reason) -> None:
    """Reject a version; an approval that it had counts no more.

    Example:

        dpoflow review reject support-desk/3 --reason "promises refunds we do not give"
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import decide

    decide(asked_team(), standard_console(), version, "reject", reason)


@review.command("promote")
def review_promote(
    version: Annotated[
        str | None, typer.Argument(metavar="[NAME/VERSION]", help="All that is due if absent.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until stopped.")] = False,
    every: Annotated[float, typer.Option(min=1, help="Seconds between rounds.")] = 30,
) -> None:
    """Make champion what was approved: copy its files, hash the copy, move the alias.

    Needs the role promoter. Killed at any point, the same command goes on; several at once do no
    harm.

    Examples:

        dpoflow review promote

        dpoflow review promote --watch --every 10
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines import review as reviews

    if version and watch:
        raise ConfigError("--watch promotes whatever is due; leave NAME/VERSION out")
    team, console = asked_team(), standard_console()
    if watch:
        reviews.watch(team, console, every)
    elif version:
        reviews.promote_one(team, console, version)
    else:
        reviews.promote_all(team, console)


@review.command("rollback")
def review_rollback(version: Version, reason: Reason) -> None:
    """Ask to go back to a version that was champion before; the promoter does it.

    Example:

        dpoflow review rollback support-desk/2 --reason "3 answers in French to German customers"
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import ask_back

    ask_back(asked_team(), standard_console(), version, reason)


@review.command("history")
def review_history(
    model: Annotated[str, typer.Argument(metavar="MODEL")], as_json: AsJson = False
) -> None:
    """Tell what the log says of a model, refusals included. For reviewers, admins, the promoter.

    Example:

        dpoflow review history support-desk
    """
    from dpoflow.registry.team import asked_team
    from dpoflow_pipelines.review import show_history

    show_history(asked_team(), standard_console(), model, as_json=as_json)


@review.command("verify-log")
def review_verify_log(
    database: Annotated[
        str | None,
        typer.Option(help="Read it there, without the server: sqlite:///FILE or postgresql://…"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash the whole audit log again: exit 3 where a row was changed, removed or moved.

    With --database the key comes from DPOFLOW_AUDIT_KEY_FILE or DPOFLOW_AUDIT_KEY; PGPASSWORD
    keeps PostgreSQL's password off the command line. Hold the hash
    that is printed somewhere else: a log that was put back whole is found by it alone.

    Examples:

        dpoflow review verify-log

        dpoflow review verify-log --database sqlite:///restored/mlflow.db --json
    """
    from dpoflow_pipelines.review import show_verified, show_verified_offline

    if database is not None:
        show_verified_offline(database, standard_console(), as_json=as_json)
        return
    from dpoflow.registry.team import asked_team

    show_verified(asked_team(), standard_console(), as_json=as_json)
