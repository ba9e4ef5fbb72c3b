"""The machines that train one model together, and the messages between them.

A TPU's hosts count as one machine: a single program drives all of them.
"""

import contextlib
import zlib
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from configs.errors import UserError
from trainer.runtime import strategy as strategies

_T = TypeVar("_T")


class Cluster:
    """The machines of a strategy. All of them call each method, in the same order.

    Args:
      strategy: over the devices of all machines.

    Attributes:
      strategy: as passed in.
      num_machines: that run this program.
      is_chief: whether this machine is the one that writes.
    """

    def __init__(self, strategy: tf.distribute.Strategy):
        self.strategy = strategy
        self.num_machines, self._index = strategies.machines(strategy)
        self.is_chief = self._index == 0
        replicas_here = strategy.num_replicas_in_sync // self.num_machines

        @tf.function
        def add_up(values: tf.Tensor) -> tf.Tensor:
            copies = strategy.run(tf.identity, args=(values,))
            sums = strategy.reduce(tf.distribute.ReduceOp.SUM, copies, axis=None)
            return sums // replicas_here

        self._add_up = add_up

    def gather(self, value: int) -> list[int]:
        """Returns each machine's value, in the machines' order; below 2**63."""
        if self.num_machines == 1:
            return [value]
        mine = tf.one_hot(self._index, self.num_machines, value, 0, dtype=tf.int64)
        return self._add_up(mine).numpy().tolist()

    def any(self, condition: bool) -> bool:
        """Returns whether the condition holds on any machine."""
        return any(self.gather(int(condition)))

    def run_on_chief_first(self, function: Callable[[], _T]) -> _T:
        """Calls a function on the chief, then on the others; returns when all have."""
        if self.is_chief:
            result = function()
        self.gather(0)
        if not self.is_chief:
            result = function()
        self.gather(0)
        return result

    def exit_barrier(self) -> None:
        """Waits until all machines have reached their end."""
        self.gather(0)
        # Now all are here. A machine that knows this may exit at once, even while it
        # answers this one: from here on, a lost connection is no error.
        with contextlib.suppress(tf.errors.OpError):
            self.gather(0)

    def check_same(self, setting: str, value: str) -> None:
        """Checks that a setting has the same value on every machine.

        Raises:
          UserError: on every machine, when one has another value.
        """
        values = self.gather(zlib.crc32(value.encode()))
        if len(set(values)) > 1:
            raise UserError(
                f"`{setting}` must be the same on all {self.num_machines} machines. "
                f"Received: {value[:1000]} here, and another value elsewhere. Start "
                "all with the same command and folders that all of them reach."
            )
