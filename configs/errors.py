"""Defines the errors that end a program with one message and no stack trace.

`configs.cli` prints the message and exits with the class's `exit_code`. All other
exceptions are bugs and keep their stack trace.
"""


class UserError(ValueError):
    """Reports a setting, flag, path or permission that the user must correct."""

    exit_code = 2


class DataError(ValueError):
    """Reports text, a dataset or a checkpoint that is damaged or does not fit."""

    exit_code = 2


class TryAgainError(RuntimeError):
    """Reports a TPU, machine or bucket that is unavailable now; a retry may work."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h


class RunError(RuntimeError):
    """Reports a run that cannot continue: a full disk, a loss that is not finite."""

    exit_code = 1
