"""A copy of variables to the host."""

import numpy as np
import tensorflow as tf

from trainer.checkpoints import tensor_file
from trainer.runtime.strategy import mirror_cpu


def test_a_copy_in_groups_has_all_values_of_now(monkeypatch):
    """Also of variables that have a copy on each of several devices."""
    monkeypatch.setattr(tensor_file, "_GROUP_BYTES", 100)
    sizes = {"a": 20, "b": 5, "c": 60, "d": 1, "e": 24}
    with mirror_cpu(2).scope():
        variables = {
            name: tf.Variable(tf.fill([size], float(size)), name=name)
            for name, size in sizes.items()
        }
    copy = tensor_file.HostCopy(variables)
    groups = [set(names) for names in copy._reader._groups()]
    assert groups == [{"a", "b"}, {"c"}, {"d", "e"}]  # c alone is larger than a group
    for added in (0.0, 1.0):
        for variable in variables.values():
            variable.assign_add(tf.fill(variable.shape, added))
        values = copy.take()
        for name, size in sizes.items():
            np.testing.assert_array_equal(values[name], np.full(size, size + added))
    assert copy._reader._read.experimental_get_tracing_count() == len(groups)


def test_a_fingerprint_is_of_names_and_values():
    first, same, other = (tf.Variable([[1.0, 2.0]] * 2) for _ in range(3))
    other[1, 1].assign(2.5)
    fingerprint = tensor_file.sha256_of({"a": first})
    assert fingerprint == tensor_file.sha256_of({"a": same})
    assert fingerprint != tensor_file.sha256_of({"b": same})
    assert fingerprint != tensor_file.sha256_of({"a": other})
