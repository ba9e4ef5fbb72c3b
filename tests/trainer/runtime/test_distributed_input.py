"""Batches on their way to the replicas."""

import pathlib

import pytest
import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops

from trainer.runtime import distributed_input
from trainer.runtime.strategy import mirror_cpu


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="needs Linux")
def test_no_thread_tunes_the_batches(monkeypatch):
    """Its end would be waited for: on each device, for up to a minute."""
    strategy = mirror_cpu(4)

    def batches(_=None):
        return tf.data.Dataset.range(9).batch(1).prefetch(1)

    def started(distributed):
        """Returns how many threads reading starts, with the iterator."""
        before = len(list(pathlib.Path("/proc/self/task").iterdir()))
        iterator = iter(distributed)
        next(iterator)
        after = len(list(pathlib.Path("/proc/self/task").iterdir()))
        return after - before, iterator

    warm_up = started(strategy.distribute_datasets_from_function(batches))
    ours = started(distributed_input.distribute(strategy, batches))
    monkeypatch.setattr(
        multi_device_iterator_ops,
        "_create_device_dataset",
        distributed_input._create_device_dataset,
    )
    tuned = started(strategy.distribute_datasets_from_function(batches))
    # Of the host's dataset, and of each device's.
    assert ours[0] == tuned[0] - 5
    del warm_up
