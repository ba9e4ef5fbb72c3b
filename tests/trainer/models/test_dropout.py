"""Dropout's noise: fair, scaled, and a function of the record alone."""

import numpy as np
import pytest
import tensorflow as tf

from trainer.models.layers.dropout import Dropout
from trainer.models.layers.noise import row_keys

SHAPE = (64, 8, 40, 40)


def kept(*, rate=0.1, seed=1, step=5, rows=range(64), site=3, shape=SHAPE):
    keys = row_keys(seed, tf.constant(step, tf.int64), tf.constant(list(rows)))
    return Dropout(rate, keys)(tf.ones(shape), site).numpy() > 0


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_the_share_that_is_dropped_is_the_rate(rate):
    noise = kept(rate=rate)
    error = np.sqrt(rate * (1 - rate) / noise.size)
    assert abs((~noise).mean() - rate) < 5 * error
    # In every row, head, query and key, too.
    for axis in range(4):
        others = tuple(a for a in range(4) if a != axis)
        shares = (~noise).mean(axis=others)
        error = np.sqrt(rate * (1 - rate) / (noise.size / len(shares)))
        assert np.abs(shares - rate).max() < 5 * error


def test_what_is_kept_is_scaled_up():
    keys = row_keys(0, tf.constant(0), tf.range(4))
    values = Dropout(0.2, keys)(tf.fill([4, 100], 3.0), 0).numpy()
    assert set(np.unique(values)) == {np.float32(0), np.float32(3.75)}


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"step": 6}, {"rows": range(1, 65)}, {"site": 4}]
)
def test_other_seeds_steps_rows_and_sites_have_other_noise(other):
    first, second = kept(rate=0.5), kept(rate=0.5, **other)
    # Independent fair coins agree on one half.
    assert abs((first == second).mean() - 0.5) < 5 * 0.5 / np.sqrt(first.size)


def test_neighbours_are_independent():
    noise = kept(rate=0.5) * 2.0 - 1
    for axis in range(4):
        moved = np.roll(noise, 1, axis=axis)
        assert abs((noise * moved).mean()) < 5 / np.sqrt(noise.size)


def test_a_row_has_its_noise_wherever_it_lies():
    together = kept(rows=range(64))
    order = np.random.default_rng(0).permutation(64)
    np.testing.assert_array_equal(kept(rows=order), together[order])
    alone = kept(rows=[17], shape=(1, *SHAPE[1:]))
    np.testing.assert_array_equal(alone[0], together[17])


def test_the_compiled_noise_is_the_same():
    keys = row_keys(1, tf.constant(5, tf.int64), tf.range(64))
    compiled = tf.function(Dropout(0.1, keys, True), jit_compile=True)
    np.testing.assert_array_equal(compiled(tf.ones(SHAPE), 3) > 0, kept())
