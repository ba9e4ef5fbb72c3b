"""Writes and reads a run's variables as one safetensors file.

The file holds names, shapes and values, never code.
"""

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
from tfrecords import checksums
from tfrecords.storage import files
from trainer.models.variables import num_bytes as num_bytes_of
from trainer.runtime import strategy as strategies

# The scope that Keras gives to a model, numbered within the process.
_SCOPE = re.compile(r"tfgpt2(lm_head_model|_for_sequence_classification)(_\d+)?/")
_NUM_NAMES = 5  # listed in a message
_GROUP_BYTES = 2**28  # that a copy to the host takes for a moment, besides its buffer


def named(owner: str, variables: Iterable[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns variables by names that are the same in every process.

    Args:
      owner: prefix of the names, such as "model" or "optimizer".
      variables: of the owner.
    """
    return {
        f"{owner}/{_SCOPE.sub('', variable.name).removesuffix(':0')}": variable
        for variable in variables
    }


class _Reader:
    """Reads variables in groups: each read by itself would wait for the device.

    Args:
      variables: by name.
    """

    def __init__(self, variables: dict[str, tf.Variable]):
        self._variables = variables
        # Traced once for each group of names.
        self._read = tf.function(self._read_group, autograph=False)

    def views(self) -> Iterator[tuple[str, memoryview]]:
        """Yields names, and views of host tensors; `numpy()` would copy them."""
        for names in self._groups():
            for name, value in zip(names, self._read(names), strict=True):
                yield name, memoryview(value)

    def _groups(self) -> Iterator[tuple[str, ...]]:
        """Yields names of variables that are read at once, and together are small."""
        names: list[str] = []
        num_bytes = 0
        for name, variable in self._variables.items():
            size = num_bytes_of([variable])
            if names and num_bytes + size > _GROUP_BYTES:
                yield tuple(names)
                names, num_bytes = [], 0
            names.append(name)
            num_bytes += size
        yield tuple(names)

    def _read_group(self, names: tuple[str, ...]) -> list[tf.Tensor]:
        with strategies.on_host():
            return [tf.identity(self._variables[name]) for name in names]


class HostCopy:
    """A buffer in host memory for a copy of all values.

    The buffer is allocated once: allocating at each save takes longer than copying.

    Args:
      variables: by name.
    """

    def __init__(self, variables: dict[str, tf.Variable]):
        self._reader = _Reader(variables)
        self._values = {
            name: np.empty(variable.shape, variable.dtype.as_numpy_dtype)
            for name, variable in variables.items()
        }

    def take(self) -> dict[str, np.ndarray]:
        """Copies the current values. They are valid until the next call."""
        for name, value in self._reader.views():
            np.copyto(self._values[name], value)
        return self._values


def sha256_of(variables: dict[str, tf.Variable]) -> str:
    """Returns the SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, value in _Reader(variables).views():
        digest.update(name.encode())
        digest.update(value)
    return digest.hexdigest()


def write(values: dict[str, np.ndarray], path: str) -> tuple[int, str]:
    """Writes a file atomically, to a local path or a bucket.

    Returns:
      The size in bytes and the SHA-256.

    Raises:
      DataError: a value is not finite.
      OSError, SafetensorError, UserError: the file cannot be written.
    """
    _check_finite(values)
    with files.writing(path) as name:
        safetensors.numpy.save_file(values, name)
        return checksums.sha256(name)


def read(path: str, variables: dict[str, tf.Variable], *, whole: bool) -> None:
    """Assigns the values of a file to variables.

    Args:
      path: local or gs://….
      variables: by the names in the file.
      whole: whether the file must hold no other values.

    Raises:
      DataError: names, shapes or dtypes differ, or a value is not finite.
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
        num_others = len(problems) - _NUM_NAMES
        others = f", and {num_others} more" if num_others > 0 else ""
        raise DataError("; ".join(problems[:_NUM_NAMES]) + others)
    _check_finite(values)
    for name, value in values.items():
        variables[name].assign(value)


def _differences(name: str, value: np.ndarray, variable: tf.Variable) -> list[str]:
    stored = (value.dtype.name, value.shape)
    expected = (variable.dtype.name, tuple(variable.shape))
    if stored == expected:
        return []
    (dtype, shape), (expected_dtype, expected_shape) = stored, expected
    return [
        f"{name} is {dtype} {list(shape)}, not {expected_dtype} {list(expected_shape)}"
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
