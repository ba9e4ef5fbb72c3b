"""Names of files and folders on the command line and in a config.

`~` is the home folder, lists have commas, and `--config` may name an installed config.
"""

import os
import pathlib
from collections.abc import Sequence

from absl import flags

from configs.errors import UserError
from configs.schema import Config

# The fields of a config that name files or folders; the first two are lists.
_PATH_LIST_FIELDS = ("data.input", "data.validation_input")
_PATH_FIELDS = ("data.tokenizer", "data.tfds_data_dir", "model.initial_checkpoint")


def _expand_home(path: str) -> str:
    """Returns a path in which `~` is the home folder."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(
            f"`~` must be a home folder. Received: {path}, whose user is not known "
            "here. Write the path out, or ./~ for a name with a tilde."
        )
    return expanded


def _expand_homes(paths: str) -> str:
    """Returns paths, separated by commas, in which each `~` is the home folder."""
    return ",".join(map(_expand_home, paths.split(",")))


class _PathParser(flags.ArgumentParser):
    """Parses the name of a file or folder."""

    def parse(self, argument: str) -> str:
        return _expand_home(argument)


class _PathsParser(flags.ArgumentParser):
    """Parses the names of files or folders."""

    def parse(self, argument: str) -> str:
        return _expand_homes(argument)


def define_path(
    name: str, help_string: str, flag_values: flags.FlagValues = flags.FLAGS
) -> None:
    """Defines the flag of a file or folder, in which `~` is the home folder."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    flags.DEFINE(_PathParser(), name, "", help_string, flag_values, serializer)


def define_paths(name: str, help_string: str) -> None:
    """Defines a flag of files or folders: it can be repeated, or have commas."""
    serializer: flags.ArgumentSerializer[str] = flags.ArgumentSerializer()
    flags.DEFINE_multi(_PathsParser(), serializer, name, [], help_string)


def split_paths(values: Sequence[str]) -> list[str]:
    """Splits the values of a flag at commas, but no path that exists."""
    split = (
        [value] if os.path.lexists(value) else value.split(",") for value in values
    )
    return [path for paths in split for path in paths if path]


def expand_config(config: Config) -> None:
    """Expands `~` in the fields of a config that name files or folders."""
    for expand, names in (
        (_expand_homes, _PATH_LIST_FIELDS),
        (_expand_home, _PATH_FIELDS),
    ):
        for concern, field in (name.split(".") for name in names):
            fields = getattr(config, concern)
            setattr(fields, field, expand(getattr(fields, field)))


def resolve_configs(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with the path of each `--config`.

    Raises:
      UserError: there is no such file.
    """
    arguments = list(argv)
    for index, argument in enumerate(argv):
        flag, equals, name = argument.partition("=")
        if flag in ("--config", "-config") and equals:
            arguments[index] = f"{flag}={_config_path(name)}"
        elif flag in ("--config", "-config") and index + 1 < len(argv):
            arguments[index + 1] = _config_path(argv[index + 1])
    return arguments


def _config_path(name: str) -> str:
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
