"""Runners carry out work items: on processes of this machine, or on Apache Beam.

An item does not depend on the runner, nor on the number of workers. What it makes goes
to files; the runner only returns the results.
"""

import argparse
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.connection import wait
from typing import TypeVar

from configs.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
# (function, items) -> (index, result) of each item, in any order. The function must be
# importable by name and idempotent, and needs nothing but the item.
Runner = Callable[
    [Callable[[Item], Result], Sequence[Item]], Iterator[tuple[int, Result]]
]


@contextlib.contextmanager
def local(num_workers: int) -> Iterator[Runner]:
    """Yields a runner on `num_workers` processes of this machine."""
    # A fork is not safe in a process that has started threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker) as pool:
        # Ctrl-C reaches all processes of a terminal. The workers inherit that it is
        # ignored, and the program itself ends them.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(num_workers):  # they start before there is work
            pool.submit(os.getpid)
        signal.signal(signal.SIGINT, previous)

        def run(
            function: Callable[[Item], Result], items: Sequence[Item]
        ) -> Iterator[tuple[int, Result]]:
            futures = {pool.submit(function, item): i for i, item in enumerate(items)}
            for future in as_completed(futures):
                yield futures[future], future.result()

        try:
            yield run
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def beam(arguments: Sequence[str]) -> Iterator[Runner]:
    """Yields a runner on Apache Beam.

    Args:
      arguments: Beam's own command-line options.

    Raises:
      UserError: Beam is not installed, or an option is unknown.
    """
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise UserError(
            "`--runner=beam` needs the extra beam: pip install 'gpt2-tpu[beam]'."
        ) from error

    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, conflict_handler="resolve"
    )
    for options in PipelineOptions.__subclasses__():
        if "_add_argparse_args" in vars(options):
            options._add_argparse_args(parser)  # type: ignore[arg-type]
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(
            "Options after --runner=beam must be known to Apache Beam. Received: "
            f"{unknown[0]}. Correct it, or write an option of this program before "
            "--runner=beam."
        )

    def run(
        function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[tuple[int, Result]]:
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(list(items), reshuffle=False)
                | apache_beam.Reshuffle()
                | apache_beam.Map(_attempt, function)
            )
        # All items are done now, so this only reads their results.
        yield from enumerate(map(function, items))

    yield run


def _attempt(item: Item, function: Callable[[Item], Result]) -> None:
    try:
        function(item)
    except ValueError as error:
        # The program meets a user's mistake again when it reads the results.
        if not hasattr(error, "exit_code"):
            raise


def _start_worker() -> None:
    # The processes share the cores, for which the tokenizer's threads would compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Ends this worker when the program was killed, so that it stops writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
