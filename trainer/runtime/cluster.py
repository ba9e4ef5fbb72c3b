"""The machines that train one model together: what they tell each other, who writes.

A TPU's hosts are one machine here: a single program drives all of them.
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

    Attributes:
      strategy: what was given.
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
        """Returns the value, below 2**63, that each machine gave."""
        if self.num_machines == 1:
            return [value]
        mine = tf.one_hot(self._index, self.num_machines, value, 0, dtype=tf.int64)
        return self._add_up(mine).numpy().tolist()

    def any(self, condition: bool) -> bool:
        """Tells whether it holds on any machine."""
        return any(self.gather(int(condition)))

    def chief_first(self, act: Callable[[], _T]) -> _T:
        """Acts on the chief, and then on the others; returns when all have."""
        if self.is_chief:
            result = act()
        self.gather(0)
        if not self.is_chief:
            result = act()
        self.gather(0)
        return result

    def leave_together(self) -> None:
        """Waits until all machines are here: the last that they have of each other."""
        self.gather(0)
        # All are here. Whoever knows that of all has ended, perhaps in the middle of
        # telling this machine: it is no loss any more.
        with contextlib.suppress(tf.errors.OpError):
            self.gather(0)

    def check_same(self, setting: str, value: str) -> None:
        """Checks that a setting leads every machine to the same.

        Raises:
          UserError: on every machine, when one has another value.
        """
        values = self.gather(zlib.crc32(value.encode()))
        if len(set(values)) > 1:
            raise UserError(
                f"`{setting}` must lead all {self.num_machines} machines to the same. "
                f"Received: {value[:1000]} here, and another elsewhere. Give all the "
                "same command, with folders that all of them reach."
            )
