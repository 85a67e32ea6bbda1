"""The promote step: one round of the promoter, for teams that schedule it.

Reads   MLFLOW_TRACKING_URI, a team's server, and the promoter's name and password
Gives   what became champion, and where the registry drifted from the log
Not     the road to champion (registry/promotion.py), the rules (registry/gate)
"""

from collections.abc import Callable

from dpoflow.contracts.errors import ConfigError, GateNotPassed
from dpoflow.contracts.results import PromoteResult
from dpoflow.registry.promotion import drift_of, promote_due
from dpoflow.registry.team import Refused, asked_team

Say = Callable[[str], None]


def run(say: Say) -> PromoteResult:
    """Promote what is due. Raises the first error once all was tried."""
    team = asked_team()
    if "promoter" not in team.roles:
        raise ConfigError(f"{team.user} is no promoter on this server; ask an admin for that role")
    outcomes = promote_due(team, say)
    for each in outcomes:
        if each.error is not None:
            say(f"not promoted: {each.due.subject}: {each.error}")
    drift = drift_of(team)
    for line in drift:
        say(f"drift: {line}")
    for each in outcomes:
        if isinstance(each.error, Refused):  # tasks know errors by the name of their class
            raise GateNotPassed(f"{each.due.subject}: {each.error}") from None
        if each.error is not None:
            raise each.error
    if not outcomes:
        say("nothing is due")
    return PromoteResult(promoted=tuple(each.due.subject for each in outcomes), drift=tuple(drift))
