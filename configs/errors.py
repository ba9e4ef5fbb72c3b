"""Defines the errors that end a program with one message and no stack trace.

`configs.cli` prints the message and exits with the class's `exit_code`. All other
exceptions are bugs and keep their stack trace, but those of a disk.
"""

import contextlib
import errno
import os
from collections.abc import Iterator

# Numbers of a disk's errors: it has no room; it, or what is on it, cannot be used.
FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
)


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


def disk_errno(error: Exception) -> int | None:
    """Returns the number of the disk's error that an exception reports; None: another.

    TensorFlow, safetensors and tokenizers have exceptions of their own, which quote it.
    """
    number = getattr(error, "errno", None)
    if number is None:
        numbers = (*FULL, errno.EROFS, errno.EACCES, errno.EIO)
        return next((n for n in numbers if os.strerror(n) in str(error)), None)
    return number if number in (*FULL, *_UNUSABLE) else None


@contextlib.contextmanager
def one_message(
    kind: type[UserError | DataError], message: str, advice: str = ""
) -> Iterator[None]:
    """Raises an error of `kind` for whatever a library raises: each has its classes.

    An error that has an exit code stays, and that of a full disk.

    Args:
      kind: of the error.
      message: the rule and what was received; the library's first line follows.
      advice: follows that line.
    """
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code") or disk_errno(error) in FULL:
            raise
        reason = [*str(error).strip().splitlines(), type(error).__name__][0]
        text = f"{message} {reason.rstrip('.')}. {advice}"
        raise kind(text.rstrip()) from error
