"""Errors of libraries, as one message."""

import errno
import os

import pytest

from configs.errors import DataError, TryAgainError, UserError, one_message


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("\n a\nb"), r"'\\n a\\nb'"),
        (AssertionError("First.\nSecond."), "First"),
        (AssertionError(), "AssertionError"),
        (OSError(errno.EACCES, "No", "file"), r"\[Errno 13\] No: 'file'"),
    ],
)
def test_whatever_a_library_raises_is_one_message(error, reason):
    with (
        pytest.raises(DataError, match=rf"^It must load\. {reason}\. Name it\.$"),
        one_message(DataError, "It must load.", "Name it."),
    ):
        raise error


@pytest.mark.parametrize(
    "error",
    [
        TryAgainError("later"),
        UserError("this"),
        OSError(errno.ENOSPC, "full"),
        RuntimeError(f"io: {os.strerror(errno.ENOSPC)}"),
    ],
)
def test_a_full_disk_and_errors_for_the_user_stay(error):
    with pytest.raises(type(error)) as caught, one_message(DataError, "It must load."):
        raise error
    assert caught.value is error
