"""The errors that a person reads: one message, no stack trace, and an exit code.

`configs.cli` ends a program with the message and the class's `exit_code`. Everything
else that is raised is a fault of this project and keeps its stack trace.
"""


class UserError(ValueError):
    """A setting, flag, path or permission that the user must correct."""

    exit_code = 2


class DataError(ValueError):
    """Text, a dataset, a checkpoint or a file that is damaged or does not fit."""

    exit_code = 2


class TryAgainError(RuntimeError):
    """A machine, TPU or bucket that is unavailable now; the same command continues."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RunError(RuntimeError):
    """A run that cannot go on: no disk space, a failed upload, a loss not finite."""

    exit_code = 1
