"""Texts that the command line names: as arguments, or as the lines of a file."""

import sys
from collections.abc import Sequence

from configs.errors import UserError
from tfrecords.storage import files


def check_arguments(flag: str, texts: Sequence[str]) -> None:
    """Raises UserError where an argument of a flag is not UTF-8."""
    for text in texts:
        # Bytes of an argument that are not UTF-8 become lone surrogates.
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"`--{flag}` must be UTF-8. Received: {text!a}.")


def read(flag: str, path: str) -> list[str]:
    """Returns the lines of a file, local or gs://….

    Args:
      flag: that names it, for messages.
      path: of the file; "-": standard input.

    Raises:
      UserError: it cannot be read, or is empty.
    """
    try:
        content = sys.stdin.buffer.read() if path == "-" else files.read(path)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`--{flag}` must be a file of UTF-8 text. Received: {path}: {error}."
        ) from error
    if not text:
        raise UserError(
            f"`--{flag}` must hold a text on each line. Received: {path}, which is "
            "empty."
        )
    # `splitlines` would also split at ten other characters.
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")
