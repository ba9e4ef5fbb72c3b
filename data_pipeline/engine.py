"""Runs work items: on processes of this machine, or on Apache Beam.

An item is the same on every engine, and for any number of workers. What it makes goes
to files; the engine only carries results back.
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
# (function, items) -> function(item) of every item, in any order. The function is
# importable by name and idempotent; what it needs is in the item.
Runner = Callable[[Callable[[Item], Result], Sequence[Item]], Iterator[Result]]


@contextlib.contextmanager
def local(num_workers: int) -> Iterator[Runner]:
    """Yields the runner on `num_workers` processes of this machine."""
    # Threads that this process has started would not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _start_worker) as pool:
        # Ctrl-C reaches all processes of a terminal. The workers inherit that it is
        # ignored: the program itself ends them.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        for _ in range(num_workers):  # they start while the job is planned
            pool.submit(os.getpid)
        signal.signal(signal.SIGINT, previous)

        def run(
            function: Callable[[Item], Result], items: Sequence[Item]
        ) -> Iterator[Result]:
            futures = [pool.submit(function, item) for item in items]
            for future in as_completed(futures):
                yield future.result()

        try:
            yield run
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def beam(arguments: Sequence[str]) -> Iterator[Runner]:
    """Yields the runner on Apache Beam, with Beam's own command-line options.

    Raises:
      UserError: Beam is not installed, or does not know an option.
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
    for concern in PipelineOptions.__subclasses__():
        if "_add_argparse_args" in vars(concern):
            concern._add_argparse_args(parser)  # type: ignore[arg-type]
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise UserError(
            f"Apache Beam knows no option {unknown[0]}. Correct it, or write it before "
            "--runner=beam where it is of this program."
        )

    def run(
        function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        with apache_beam.Pipeline(options=PipelineOptions(list(arguments))) as pipeline:
            _ = (
                pipeline
                | apache_beam.Create(list(items), reshuffle=False)
                | apache_beam.Reshuffle()
                | apache_beam.Map(_attempt, function)
            )
        # Everything is done: this reads the results.
        yield from map(function, items)

    yield run


def _attempt(item: Item, function: Callable[[Item], Result]) -> None:
    try:
        function(item)
    except ValueError as error:
        # The user's mistake: this process's caller meets it again and reports it.
        if not hasattr(error, "exit_code"):
            raise


def _start_worker() -> None:
    # The processes share the cores; the tokenizer's own threads would compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    threading.Thread(target=_die_with_the_parent, daemon=True).start()


def _die_with_the_parent() -> None:
    """A killed program leaves no worker behind that goes on writing."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
