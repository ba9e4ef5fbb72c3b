"""Counts of variables."""

from collections.abc import Iterable

import tensorflow as tf


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns the number of values."""
    return sum(variable.shape.num_elements() for variable in variables)


def num_bytes(variables: Iterable[tf.Variable]) -> int:
    """Returns the size of the values in bytes."""
    return sum(
        variable.shape.num_elements() * variable.dtype.size for variable in variables
    )
