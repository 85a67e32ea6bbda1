"""Who asks: one small interface, so that single sign-on can take the place of basic-auth.

Gives   `Identity`; `BasicAuth`: MLflow's own accounts, checked by MLflow's own code
Not     what they may do (roles.py, rules.py)
"""

from collections.abc import Sequence
from typing import Protocol


class Identity(Protocol):
    """What the gate asks of an identity provider."""

    def user_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The user that the request proves to come from; None where it proves nothing."""
        ...

    def has_account(self, user: str) -> bool:
        """Whether the user is still known."""
        ...

    def may_edit(self, user: str, experiment_id: str) -> bool:
        """Whether the user may write to an experiment, and so seal what lies in it."""
        ...


class BasicAuth:
    """MLflow's basic-auth: its store and its password hashes.

    Not its cache of passwords: a user who is gone, or has another password, is so at once here.
    """

    def user_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """None, too, for two Authorization headers: who of them is meant is anybody's guess."""
        from mlflow.server import auth
        from werkzeug.datastructures import Authorization

        given = [value for name, value in headers if name.lower() == b"authorization"]
        if len(given) != 1:
            return None
        told = Authorization.from_header(given[0].decode("latin1"))
        if told is None or told.type != "basic" or not told.username or told.password is None:
            return None
        name, password = str(told.username), str(told.password)
        if "\0" in name:  # nobody is called so, and PostgreSQL does not even look
            return None
        known = auth.store.authenticate_user(name, password)
        refused = auth._is_disabled_legacy_admin_login(name, password)  # noqa: SLF001
        return str(auth.store.get_user(name).username) if known and not refused else None

    def has_account(self, user: str) -> bool:
        """By name."""
        from mlflow.server import auth

        return bool(auth.store.has_user(user))

    def may_edit(self, user: str, experiment_id: str) -> bool:
        """As MLflow decides it for a write to the experiment."""
        from mlflow.server import auth

        if auth.store.get_user(user).is_admin:
            return True
        return bool(auth._get_experiment_permission(experiment_id, user).can_update)  # noqa: SLF001
