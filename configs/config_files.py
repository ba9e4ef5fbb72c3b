"""Finds the file of `--config`, which may be a path or the name of an installed one."""

import os
import pathlib
from collections.abc import Sequence

from configs.errors import UserError


def resolve(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the path of each `--config`.

    Raises:
      UserError: there is no such file.
    """
    arguments = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            arguments[index] = f"{flag}={_path(name)}"
        elif flag in ("--config", "-config") and index + 1 < len(argv):
            arguments[index + 1] = _path(argv[index + 1])
    return arguments


def _path(name: str) -> str:
    name = os.path.expanduser(name)
    if os.path.isfile(name):
        return name
    installed = {
        path.stem: str(path)
        for path in sorted(pathlib.Path(__file__).parent.glob("*.py"))
        if "\ndef get_config(" in path.read_text(encoding="utf-8")
    }
    stem = name.removeprefix("configs/").removesuffix(".py")
    if stem not in installed:
        raise UserError(
            f"`--config` must be a file, or one of {', '.join(installed)}. "
            f"Received: {name}."
        )
    return installed[stem]
