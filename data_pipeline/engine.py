"""Runs work items on local processes."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[Result]:
    """Yields `function(item)` for every item, in the order in which they finish.

    Args:
      function: importable by name, idempotent; what it needs is in the item.
      items: each one is a unit of work that is the same for any `num_workers`.
      num_workers: processes.
    """
    # Threads that this process has started would not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, initializer=_single_thread) as pool:
        try:
            for future in as_completed([pool.submit(function, item) for item in items]):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _single_thread() -> None:
    # The processes share the cores; the tokenizer's own threads would compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
