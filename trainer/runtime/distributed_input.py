"""Hands each replica its part of the batches."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.python.data.ops import multi_device_iterator_ops


def distribute(
    strategy: tf.distribute.Strategy,
    make_batches: Callable[[tf.distribute.InputContext], tf.data.Dataset],
) -> tf.distribute.DistributedDataset:
    """Distributes the batches of each host to its replicas.

    The dataset is declared infinite, for readers that know the number of batches:
    several machines would otherwise agree before each batch whether one is left, and
    the batch would lose its static shape. Reading past the end is an error.

    Args:
      strategy: of the replicas.
      make_batches: context of a host -> its batches, each for one replica.
    """

    # Its analysis of the functions of a dataset takes seconds, and they need none.
    @tf.autograph.experimental.do_not_convert
    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        infinite = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        return make_batches(context).apply(infinite).with_options(_without_tuning())

    return strategy.distribute_datasets_from_function(batches)


def _without_tuning() -> tf.data.Options:
    options = tf.data.Options()
    options.autotune.enabled = False
    return options


# An iterator ends when its thread that tunes buffers has ended. In TensorFlow 2.20 that
# thread can miss its notice (`Model::OptimizeLoop` is woken before
# `CancellationManager::IsCancelled` is true) and sleeps on, for up to a minute on each
# device: after a training, and after each evaluation. So nothing is tuned. Of the
# iterators that `tf.distribute` makes for each device, only this function has options.
_create_device_dataset = multi_device_iterator_ops._create_device_dataset


def _create_without_tuning(*args: Any) -> tf.data.Dataset:
    return _create_device_dataset(*args).with_options(_without_tuning())


multi_device_iterator_ops._create_device_dataset = _create_without_tuning
