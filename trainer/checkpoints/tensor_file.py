"""A run's variables as one safetensors file: named, with shapes, and never code."""

import contextlib
import hashlib
import os
import re
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np
import safetensors
import safetensors.numpy
import tensorflow as tf

from configs.errors import DataError
from tfrecords.storage import files
from trainer.runtime import strategy as strategies

# Keras numbers the models of a process.
_SCOPE = re.compile(r"tfgpt2lm_head_model(_\d+)?/")
_NUM_NAMES = 5  # that a message lists


def named(owner: str, variables: Iterable[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by names that are the same in every process."""
    return {
        f"{owner}/{_SCOPE.sub('', variable.name).removesuffix(':0')}": variable
        for variable in variables
    }


class HostCopy:
    """Memory of the host for a copy of all values, which training does not change.

    It is taken once: to get new memory at each save takes longer than to copy.
    """

    def __init__(self, variables: dict[str, tf.Variable]):
        self._variables = variables
        self._values = {
            name: np.empty(variable.shape, variable.dtype.as_numpy_dtype)
            for name, variable in variables.items()
        }

    def take(self) -> dict[str, np.ndarray]:
        """Returns the present values, until it is called again."""
        for name, variable in self._variables.items():
            with strategies.on_host():
                value = tf.identity(variable)
            # A view of a tensor of the host, where `numpy` would copy.
            np.copyto(self._values[name], memoryview(value))
        return self._values


def write(values: dict[str, np.ndarray], path: str) -> tuple[int, str]:
    """Writes a file, here or in a bucket, whole or not at all.

    Returns:
      Its size in bytes and SHA-256.

    Raises:
      DataError: a value is not finite.
      OSError, SafetensorError, UserError: it cannot be written.
    """
    _check_finite(values)
    with files.writing(path) as name:
        safetensors.numpy.save_file(values, name)
        return checksum(name)


def checksum(path: str) -> tuple[int, str]:
    """Returns size in bytes and SHA-256."""
    digest, size = hashlib.sha256(), 0
    with files.open_read(path) as stream:
        while block := stream.read(1 << 24):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def read(path: str, variables: dict[str, tf.Variable], *, whole: bool) -> None:
    """Assigns what a file holds.

    Args:
      path: here or in a bucket.
      variables: by the file's names.
      whole: the file may hold nothing else.

    Raises:
      DataError: names, shapes or types differ, or a value is not finite.
    """
    with _opened(path) as file:
        stored = set(file.keys())
        problems = [f"{name} is missing" for name in sorted(variables.keys() - stored)]
        if whole:
            surplus = sorted(stored - variables.keys())
            problems += [f"{name} is not expected" for name in surplus]
        values = {}
        for name in sorted(variables.keys() & stored):
            values[name] = file.get_tensor(name)
            problems += _differences(name, values[name], variables[name])
    if problems:
        more = f", and {len(problems) - _NUM_NAMES} more" * (len(problems) > _NUM_NAMES)
        raise DataError("; ".join(problems[:_NUM_NAMES]) + more)
    _check_finite(values)
    for name, value in values.items():
        variables[name].assign(value)


def _differences(name: str, value: np.ndarray, variable: tf.Variable) -> list[str]:
    found = (value.dtype.name, value.shape)
    expected = (variable.dtype.name, tuple(variable.shape))
    if found == expected:
        return []
    return [
        f"{name} is {found[0]} {list(found[1])}, not {expected[0]} {list(expected[1])}"
    ]


def _check_finite(values: dict[str, np.ndarray]) -> None:
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise DataError(f"not finite: {', '.join(bad[:_NUM_NAMES])}")


@contextlib.contextmanager
def _opened(path: str) -> Iterator[safetensors.safe_open]:
    with tempfile.TemporaryDirectory() as folder:
        local = path
        if files.is_remote(path):
            local = os.path.join(folder, "state")
            files.download(path, local)
        with safetensors.safe_open(local, framework="numpy") as file:
            yield file
