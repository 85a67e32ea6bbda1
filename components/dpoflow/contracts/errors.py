"""Errors that say who acts.

    DpoflowError              exit   who acts
    ├── ConfigError              2   whoever wrote the config
    ├── DataRejected             3   whoever owns the data
    ├── GateNotPassed            4   whoever trained the model
    └── ServiceUnavailable       5   nobody yet: try again later

A message is one line: the thing, its value, and the way out. Anything else that escapes a step is a
bug of ours and exits 1.
"""


class DpoflowError(Exception):
    """Base of every error that a user is meant to read."""

    exit_code: int = 1

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class ConfigError(DpoflowError):
    """The spec, the command line or the environment asks for something that cannot be."""

    exit_code = 2


class DataRejected(DpoflowError):
    """The data, or a model directory, is not what it must be."""

    exit_code = 3


class GateNotPassed(DpoflowError):
    """The run completed and its model did not earn the verdict that was required."""

    exit_code = 4


class ServiceUnavailable(DpoflowError):
    """Something outside did not answer, or is busy; the same command may work later."""

    exit_code = 5


BY_NAME: dict[str, type[DpoflowError]] = {
    kind.__name__: kind for kind in (ConfigError, DataRejected, GateNotPassed, ServiceUnavailable)
}
"""For errors that crossed a process boundary by name: see `state.step`."""
