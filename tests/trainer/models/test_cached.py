"""The decoder with a cache: the same hidden states as the forward pass."""

import numpy as np
import tensorflow as tf

from tests.conftest import VOCABULARY_SIZE, tiny_model
from trainer.models.gpt2 import cached, forward


def test_parts_of_any_length_give_what_the_whole_gives():
    """Rows of other lengths, whose padding is read and then overwritten."""
    gpt2 = tiny_model(n_positions=24)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, (3, 20))
    tokens = tf.constant(tokens, tf.int32)
    expected = forward.hidden_states(gpt2, tokens).numpy()
    length = np.array([4, 12, 9])

    @tf.function(autograph=False)
    def decode():
        decoder = cached.CachedDecoder(gpt2)
        cache = decoder.create_cache(tf.constant(3), tf.constant(24))
        parts = []
        for begin, end in ((0, 5), (5, 12)):
            part, cache = decoder.extend(
                tokens[:, begin:end], tf.fill([3], begin), cache
            )
            parts.append(part)
        for step in range(6):
            places = tf.constant(length + step, tf.int32)
            new = tf.gather(tokens, places[:, None], batch_dims=1)
            part, cache = decoder.extend(new, places, cache)
            parts.append(part)
        return tf.concat(parts, 1), decoder.logits(parts[-1][:, 0])

    hidden, logits = decode()
    np.testing.assert_allclose(hidden[:, :12], expected[:, :12], atol=1e-5)
    for row, begin in enumerate(length):
        after = expected[row, begin : begin + 6]
        np.testing.assert_allclose(hidden[row, 12:], after, atol=1e-5)
    last = expected[np.arange(3), length + 5]
    table = forward.output_table(gpt2).numpy()
    np.testing.assert_allclose(logits, last @ table.T, atol=1e-5)
