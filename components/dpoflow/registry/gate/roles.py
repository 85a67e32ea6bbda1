"""Who holds which role, from a file that is read again when it changes.

    engineer: [ada]
    reviewer: [rita, ada]
    pipeline: [dpoflow-pipeline]
    promoter: [dpoflow-promoter]
    admin: [root]

Reads   the YAML file that DPOFLOW_ROLES names, or the YAML itself in DPOFLOW_ROLES_YAML
Gives   `Roles.of`: the roles of a user, now
Not     accounts and passwords (identity.py)
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from dpoflow.contracts.errors import ConfigError

FILE = "DPOFLOW_ROLES"
TEXT = "DPOFLOW_ROLES_YAML"

Role = Literal["engineer", "reviewer", "pipeline", "promoter", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)


def read_roles(text: str, where: str) -> dict[str, frozenset[Role]]:
    """User to roles. ConfigError names what is wrong in `where`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        told: Any = YAML(typ="safe").load(text)
    except YAMLError as error:
        raise ConfigError(f"{where} is no YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(told, dict) or not told:
        raise ConfigError(f"{where} names no roles; write lines such as reviewer: [rita]")
    holders: dict[str, set[Role]] = {}
    for role, users in told.items():
        if role not in ROLES:
            raise ConfigError(f"{where} has the role {role!r}; there are {', '.join(ROLES)}")
        if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
            raise ConfigError(f"{where}: {role} must be a list of user names, such as [rita]")
        for user in users:
            holders.setdefault(user, set()).add(role)
    return {user: frozenset(roles) for user, roles in holders.items()}


class Roles:
    """Roles of users, as the file says it at the moment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._path = Path(environment[FILE]) if environment.get(FILE) else None
        self._lock = threading.Lock()
        self._seen: tuple[int, int, int] | None = None
        self._of: dict[str, frozenset[Role]] = {}
        if self._path is None:
            text = environment.get(TEXT, "")
            if not text.strip():
                raise ConfigError(
                    f"no roles: let {FILE} name a YAML file with lines such as reviewer: [rita], "
                    f"or set {TEXT} to such YAML"
                )
            self._of = read_roles(text, TEXT)
        else:
            self.of("")

    def of(self, user: str) -> frozenset[Role]:
        """The roles of `user`. ConfigError where the file is gone or damaged: then nobody acts."""
        if self._path is not None:
            with self._lock:
                self._reread(self._path)
        return self._of.get(user, frozenset())

    def _reread(self, path: Path) -> None:
        try:
            stat = path.stat()
            seen = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._of = read_roles(path.read_text("utf-8"), f"{FILE} {path}")
                self._seen = seen
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{FILE} {path} cannot be read ({type(error).__name__}); name a YAML file with "
                "lines such as reviewer: [rita]"
            ) from None
