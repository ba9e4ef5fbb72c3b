"""Shows the progress of long work on stderr: a bar, or a line of the log a minute."""

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import IO, Any

from absl import logging
from tqdm import tqdm

_LOG_SECONDS = 60


class _LogProgress(tqdm):
    """Logs the state where tqdm would draw it; never within the first minute."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        logging.info("%s", msg or self)


@contextlib.contextmanager
def progress(description: str, total: int, unit: str, **options: Any) -> Iterator[tqdm]:
    """Yields a bar with rate and time left, to be moved on by `update`.

    Where stderr is a terminal, the bar stands below the lines of the log. Elsewhere the
    log gets a line a minute.

    Args:
      description: what is done, such as "evaluate".
      total: units of the whole work.
      unit: of `total`, in the singular.
      **options: of tqdm, such as `initial`, `unit_scale`, `delay` and `leave`.
    """
    options |= {"desc": description, "total": total, "unit": unit}
    if not sys.stderr.isatty():
        options |= {
            "delay": _LOG_SECONDS,
            "mininterval": _LOG_SECONDS,
            "miniters": 1,
            "file": io.StringIO(),  # the log takes its place
            "bar_format": "{desc}: {percentage:.0f} %, {n_fmt} of {total_fmt}, "
            "{rate_fmt}, {remaining} left{postfix}",
        }
        with _LogProgress(**options) as bar:
            yield bar
        return
    with (
        _lines_above_bars() as terminal,
        tqdm(file=terminal, dynamic_ncols=True, **options) as bar,
    ):
        yield bar


@contextlib.contextmanager
def _lines_above_bars() -> Iterator[IO[str]]:
    """Moves bars out of the way of what is logged or printed; yields the terminal."""
    from tqdm.contrib import DummyTqdmFile  # it imports asyncio, which takes time

    if isinstance(sys.stderr, DummyTqdmFile):  # this bar is inside another
        yield sys.stderr._wrapped
        return
    terminal = sys.stderr
    handler = logging.get_absl_handler().python_handler
    with contextlib.redirect_stderr(DummyTqdmFile(terminal)):
        previous = handler.setStream(sys.stderr)
        try:
            yield terminal
        finally:
            handler.setStream(previous or terminal)
