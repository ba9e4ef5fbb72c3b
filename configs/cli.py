"""The command line that all programs share: flags, checks, exit codes, results.

Exit code 0: done. 2: the user's mistake, reported in one message. 75: something is
unavailable now. 1: a fault, with its stack trace. See `configs.errors`.
"""

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from configs import chatter, schema
from configs.errors import FULL, UserError, disk_errno
from configs.paths import define_path, expand_config, resolve_configs

_passed_on: list[str] = []


def define_config() -> None:
    """Defines `--config=configs/NAME.py` and `--config.FIELD=VALUE` for its fields."""
    config_flags.DEFINE_config_file(
        "config", help_string="a file of configs/", lock_config=False
    )


def define_hardware() -> None:
    """Defines `--tpu` and `--num_virtual_devices`, which `check_hardware` checks."""
    flags.DEFINE_string(
        "tpu",
        "",
        "local (this machine is a TPU VM), a name, grpc://HOST:PORT, or none; empty: "
        "what TPU_NAME names, or a TPU or GPUs where this machine has them",
    )
    flags.DEFINE_integer(
        "num_virtual_devices", 0, "split the CPU into so many devices", lower_bound=0
    )


def define_model() -> None:
    """Defines the flags that name a trained model, which `check_model` checks."""
    define_path("workdir", "folder of a run")
    flags.DEFINE_integer(
        "step", 0, "of the run's checkpoint; 0: the newest", lower_bound=0
    )
    define_path("checkpoint", "Hugging Face folder or name")


def check_hardware(tpu: str, num_virtual_devices: int) -> None:
    """Checks that a TPU and virtual CPU devices are not both requested.

    Raises:
      UserError: they are.
    """
    if tpu not in ("", "none") and num_virtual_devices:
        raise UserError(
            "`--tpu` and `--num_virtual_devices` exclude each other. Received: "
            f"{tpu!r} and {num_virtual_devices}."
        )


def tpu_name() -> str:
    """Returns the TPU of `--tpu`, or of the environment, where no flag says otherwise.

    TPU_NAME is where Google's tools and TensorFlow look for it.
    """
    if flags.FLAGS.tpu or flags.FLAGS.num_virtual_devices:
        return flags.FLAGS.tpu
    return os.environ.get("TPU_NAME", "")


def check_folder(flag: str, path: str, tpu: str = "") -> None:
    """Checks that a folder is named, and that the hardware can reach it.

    Raises:
      UserError: it is missing, or local although a remote TPU's machine reads it.
    """
    if not path:
        raise UserError(f"`--{flag}` is missing: a folder, or gs://….")
    if tpu not in ("", "none", "local") and not path.startswith("gs://"):
        raise UserError(
            f"`--{flag}` must be gs://… with a remote TPU, whose own machine reads and "
            f"writes it. Received: {path}."
        )


def check_model(workdir: str, step: int, checkpoint: str) -> None:
    """Checks that one model is named.

    Raises:
      UserError: none or two are, or a `--step` without a run.
    """
    if bool(workdir) == bool(checkpoint):
        raise UserError("Give either `--workdir` or `--checkpoint`.")
    if checkpoint and step:
        raise UserError("`--step` belongs to a `--workdir`: leave it out.")


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None],
    *,
    passes_on: str = "",
    uses_tensorflow: bool = False,
) -> None:
    """Runs a program to its end, and ends the process with the exit code.

    Args:
      main: runs after the flags are parsed.
      define_flags: defines the program's own flags. Not at import: modules of several
        programs can be imported together.
      passes_on: an argument. Those behind it that are not flags of this program are for
        another one, and `passed_on` returns them.
      uses_tensorflow: whether `main` may import TensorFlow, whose chatter is dropped.
    """

    def start() -> None:
        chatter.set_environment()
        if "tpu" in flags.FLAGS and tpu_name() not in ("", "none", "local"):
            # TensorFlow fails where this machine's own TPU is beside the remote one.
            os.environ["TPU_LOAD_LIBRARY"] = "0"
        if uses_tensorflow:
            chatter.filter_stderr()
        main()

    inherited = set(flags.FLAGS)
    define_flags()
    flags.DEFINE_bool("json", False, "print the result as one JSON object")
    for name in set(flags.FLAGS) - inherited:  # `--help` lists those of the program
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    own = _own_arguments(sys.argv, passes_on)
    app.run(lambda _: guard(start), argv=own, flags_parser=_parse)


def print_result(
    result: Mapping[str, Any],
    *,
    as_json: bool,
    rows: Iterable[Sequence[Any]] | None = None,
) -> None:
    """Prints a result on stdout: a table for people, or one JSON object.

    Args:
      result: the JSON object; numbers that are not finite become null.
      as_json: print the object instead of the table.
      rows: the table's cells; by default a row for each item of `result`.
    """
    if as_json:
        print(json.dumps(_finite(result), allow_nan=False))
        return
    if rows is None:
        rows = [(name.replace("_", " "), value) for name, value in result.items()]
    table = [[_text(cell) for cell in row] for row in rows]
    # Under a name, values begin in one column; numbers beside each other end in one.
    align = str.ljust if all(len(row) == 2 for row in table) else str.rjust
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for first, *others in table:
        cells = [
            align(cell, width) for cell, width in zip(others, widths[1:], strict=True)
        ]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _text(value: Any) -> str:
    """Returns how a person reads a value; "-" of one that is not known."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, float):
        return f"{value:,.4f}"
    return f"{value:,}" if type(value) is int else str(value)


def passed_on() -> list[str]:
    """Returns the arguments for another program; see `run`."""
    return list(_passed_on)


def _own_arguments(argv: Sequence[str], passes_on: str) -> list[str]:
    """Returns this program's arguments; keeps those to pass on for `passed_on`."""
    if not passes_on or passes_on not in argv:
        return list(argv)
    behind = argv.index(passes_on) + 1
    own, is_own = list(argv[:behind]), True
    for argument in argv[behind:]:
        if argument.startswith("-"):  # otherwise it is the value of the flag before
            name = argument.lstrip("-").split("=")[0]
            known = name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS
            # Both programs define these flags: here they are the other program's.
            shared = name == "num_workers" or passes_on.startswith(f"--{name}=")
            is_own = not shared and (known or name.startswith("config."))
        (own if is_own else _passed_on).append(argument)
    return own


def guard(main: Callable[[], None]) -> None:
    """Runs `main`; an error for the user ends the process with one message."""
    try:
        main()
    except KeyboardInterrupt:
        _stop("Interrupted. The same command continues.", exit_code=130)
    except Exception as error:  # a disk's, too, which libraries have classes of
        exit_code = getattr(error, "exit_code", None)
        if exit_code is not None:
            _stop(str(error), exit_code)
        number = disk_errno(error)
        if number is None:
            raise
        # A file is written under a name of its own: see `files.writing`.
        path = getattr(error, "filename", None) or _first_lines(error)
        path = re.sub(r"\.[0-9a-f]{8}\.partial$", "", str(path))
        if number not in FULL:
            _stop(f"{path} cannot be used: {os.strerror(number)}. Name another.")
        _stop(
            f"The disk is full: {path}. Finished work is kept. Make room, and run the "
            "same command again.",
            exit_code=1,
        )


def _parse(argv: Sequence[str]) -> list[str]:
    if {"--help", "-help", "-h"} & set(argv):  # absl would end with exit code 1
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    _check_config_fields(argv)
    try:
        if "config" in flags.FLAGS:
            argv = resolve_configs(argv)
        remaining = flags.FLAGS(argv)
        if len(remaining) > 1:
            _stop(f"Only flags are understood. Received: {' '.join(remaining[1:])}")
        if "config" in flags.FLAGS:
            config: Any = flags.FLAGS["config"].value
            if config is None:
                _stop("--config=configs/NAME.py is missing.")
            # ml_collections reports a file that cannot be loaded at its first use.
            expand_config(config)
    except (flags.Error, OSError, AttributeError, TypeError, ValueError) as error:
        _stop(_first_lines(error))
    return remaining


def _check_config_fields(argv: Sequence[str]) -> None:
    """Names the nearest known field for each unknown `--config.` or `--grid.FIELD`."""
    known = list(schema.flatten(schema.Config()))
    problems = []
    for argument in argv[1:]:
        name = argument.split("=")[0].lstrip("-").removeprefix("no")
        kind, dot, field = name.partition(".")
        if not (argument.startswith("-") and kind in ("config", "grid") and dot):
            continue
        if field not in known:
            nearest = difflib.get_close_matches(field, known, n=1, cutoff=0)[0]
            problems.append(
                f"There is no config field `{field}`. Did you mean `{nearest}`?"
            )
    if problems:
        _stop("\n".join(problems))


def _first_lines(error: BaseException) -> str:
    """Returns a message without the stack trace that ml_collections may add."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if "Traceback" in str(error) else "\n".join(lines[:4])


def _stop(message: str, exit_code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
