"""The command line that all programs share: config flags, exit codes, one message.

Exit code 0: done. 2: the user's mistake, told in one message. 1: a fault, with its
stack trace. An exception is the user's mistake when its class says `exit_code = 2`.
"""

import difflib
import errno
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import config_flags

from configs import schema

_passed_on: list[str] = []


def define_config() -> None:
    """Defines `--config=configs/NAME.py` and `--config.FIELD=VALUE` for its fields."""
    config_flags.DEFINE_config_file(
        "config", help_string="a file of configs/", lock_config=False
    )


def run(
    main: Callable[[], None],
    define_flags: Callable[[], None],
    *,
    passes_on: str = "",
) -> None:
    """Runs a program to its end, and ends the process with the exit code.

    Args:
      main: runs when the flags are parsed.
      define_flags: defines the program's own. Not before: modules of several programs
        can be imported together.
      passes_on: an argument. Those behind it that are not of this program are for
        another, and `passed_on` returns them.
    """
    inherited = set(flags.FLAGS)
    define_flags()
    flags.DEFINE_bool("json", False, "print the result as one JSON object")
    for name in set(flags.FLAGS) - inherited:  # `--help` lists those of the program
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    own = _own_arguments(sys.argv, passes_on)
    app.run(lambda _: guard(main), argv=own, flags_parser=_parse)


def passed_on() -> list[str]:
    """Returns the arguments that are for another program; see `run`."""
    return list(_passed_on)


def _own_arguments(argv: Sequence[str], passes_on: str) -> list[str]:
    """Keeps the arguments of this program, and puts aside those to pass on."""
    if not passes_on or passes_on not in argv:
        return list(argv)
    behind = argv.index(passes_on) + 1
    own, aside = list(argv[:behind]), False
    for argument in argv[behind:]:
        if argument.startswith("-"):  # other arguments are the value of the one before
            name = argument.lstrip("-").split("=")[0]
            known = name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS
            # Both programs have these; here they are the other's.
            theirs = name == "num_workers" or passes_on.startswith(f"--{name}=")
            aside = theirs or not (known or name.startswith("config."))
        (_passed_on if aside else own).append(argument)
    return own


def guard(main: Callable[[], None]) -> None:
    """Runs `main`; a mistake of the user ends the process with one message."""
    try:
        main()
    except (ValueError, RuntimeError) as error:
        exit_code = getattr(error, "exit_code", None)
        if exit_code is None:
            raise
        _stop(str(error), exit_code)
    except KeyboardInterrupt:
        _stop("Interrupted. The same command continues.", exit_code=130)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        _stop(f"{error.filename} cannot be used: {error.strerror}. Name another.")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _stop(
            f"The disk is full: {error.filename or error}. What was finished stays. "
            "Make room, and run the same command again.",
            exit_code=1,
        )


def _parse(argv: Sequence[str]) -> list[str]:
    _check_config_fields(argv)
    try:
        remaining = flags.FLAGS(argv)
        if len(remaining) > 1:
            _stop(f"Only flags are understood. Received: {' '.join(remaining[1:])}")
        if "config" in flags.FLAGS:
            config: Any = flags.FLAGS["config"].value
            if config is None:
                _stop("--config=configs/NAME.py is missing.")
            # A file that cannot be loaded is only reported when it is touched.
            _ = config.data
    except (flags.Error, OSError, AttributeError, TypeError, ValueError) as error:
        _stop(_first_lines(error))
    return remaining


def _check_config_fields(argv: Sequence[str]) -> None:
    """Names the nearest known field for each unknown `--config.FIELD`."""
    known = list(schema.flatten(schema.Config()))
    for argument in argv[1:]:
        field = argument.split("=")[0].lstrip("-").removeprefix("no")
        if not (argument.startswith("-") and field.startswith("config.")):
            continue
        field = field.removeprefix("config.")
        if field not in known:
            nearest = difflib.get_close_matches(field, known, n=1, cutoff=0)[0]
            _stop(f"There is no config field `{field}`. Did you mean `{nearest}`?")


def _first_lines(error: BaseException) -> str:
    """The message without the trace that ml_collections puts into some."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if "Traceback" in str(error) else "\n".join(lines[:4])


def _stop(message: str, exit_code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)
