"""The forward pass for generation: a few new tokens after many whose keys are kept.

Nothing needs XLA, which `tensorflow-tpu` lacks for the host. No shape is static: one
graph serves prompts of all lengths.

Dimensions: B rows, T new tokens of each, S places in the cache, N = B x T, C channels,
H heads of D channels, V ids of the vocabulary.
"""

import tensorflow as tf
import tf_keras
from transformers import TFGPT2LMHeadModel

from trainer.models.gpt2 import forward

# Keys and values of a layer, each float32 [B x H x S, D].
LayerCache = tuple[tf.Tensor, tf.Tensor]


class CachedDecoder:
    """Computes logits by a cache of keys and values.

    It reads all weights when it is created. A loop would otherwise read them in each
    round; the embedding, from which rows are gathered, would be copied each time.

    Args:
      model: without adapters.
    """

    def __init__(self, model: TFGPT2LMHeadModel):
        transformer = model.transformer
        self._num_heads = model.config.n_head
        self._table = forward.output_table(model)
        self._positions = tf.convert_to_tensor(transformer.wpe.embeddings)
        self._layers = transformer.h
        self._weights = [forward.block_weights(layer) for layer in transformer.h]
        self._last_norm = transformer.ln_f
        self._last_weights = forward.affine(transformer.ln_f)

    def create_cache(self, num_rows: tf.Tensor, size: tf.Tensor) -> list[LayerCache]:
        """Returns an empty cache for B rows of at most S tokens."""
        depth = self._positions.shape[1] // self._num_heads
        shape = [num_rows * self._num_heads * size, depth]

        def empty() -> tf.Tensor:
            # Not `tf.zeros`, of which TensorFlow would make one tensor for all layers.
            return tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)

        return [(empty(), empty()) for _ in self._layers]

    def extend(
        self, tokens: tf.Tensor, begin: tf.Tensor, cache: list[LayerCache]
    ) -> tuple[tf.Tensor, list[LayerCache]]:
        """Computes new tokens, and adds their keys and values to the cache.

        A token attends to the places up to its own. So what stands behind it, of
        padding or of an earlier use, has no effect.

        Args:
          tokens: int32 [B, T].
          begin: int32 [B], the position of each row's first new token.
          cache: as returned by `create_cache` or by this.

        Returns:
          The hidden states float32 [B, T, C], and the cache.
        """
        num_rows, length = tf.unstack(tf.shape(tokens))
        positions = begin[:, None] + tf.range(length)  # (B, T)
        x = tf.gather(self._table, tokens) + tf.gather(self._positions, positions)
        x = tf.reshape(x, [-1, x.shape[2]])  # (N, C)
        size = tf.shape(cache[0][0])[0] // (num_rows * self._num_heads)
        heads = tf.reshape(tf.range(num_rows * self._num_heads), [num_rows, -1, 1])
        places = tf.reshape(heads * size + positions[:, None], [-1])  # (B x H x T)
        visible = tf.range(size) <= positions[..., None]
        mask = tf.where(visible, 0.0, -1e9)[:, None]  # (B, 1, T, S)
        extended = []
        layers = zip(self._layers, self._weights, cache, strict=True)
        for layer, weights, layer_cache in layers:
            normal = forward.layer_norm(x, weights.norm_1, layer.ln_1.epsilon)
            joined = _project(normal, weights.attention_in)
            shape = [num_rows, length, 3, self._num_heads, layer_cache[0].shape[1]]
            mixed, layer_cache = _attend(
                tf.reshape(joined, shape), places, mask, layer_cache
            )
            x += _project(tf.reshape(mixed, tf.shape(x)), weights.attention_out)
            x += _feed_forward(x, layer, weights)
            extended.append(layer_cache)
        x = forward.layer_norm(x, self._last_weights, self._last_norm.epsilon)
        return tf.reshape(x, [num_rows, length, x.shape[1]]), extended

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Returns the logits of hidden states, float32 [B, C] -> [B, V]."""
        return tf.matmul(hidden, self._table, transpose_b=True)


def _attend(
    joined: tf.Tensor, places: tf.Tensor, mask: tf.Tensor, cache: LayerCache
) -> tuple[tf.Tensor, LayerCache]:
    """Attends to the cache, once the new keys and values are in it.

    Args:
      joined: float32 [B, T, 3, H, D], queries, keys and values.
      places: int32 [B x H x T], rows of the cache for the new tokens.
      mask: float32 [B, 1, T, S], added to the scores.
      cache: of this layer.

    Returns:
      The mixed values, float32 [B, T, H, D], and the cache.
    """
    query, key, value = tf.unstack(tf.transpose(joined, [2, 0, 3, 1, 4]))
    num_rows, num_heads, _, depth = tf.unstack(tf.shape(query))
    # In place: a copy of the cache would take longer than all the rest. What still
    # reads the old cache is not disturbed, since it masks the new places.
    keys, values = (
        tf.raw_ops.InplaceUpdate(x=old, i=places, v=tf.reshape(new, [-1, depth]))
        for old, new in zip(cache, (key, value), strict=True)
    )
    shape = [num_rows, num_heads, -1, depth]
    query *= query.shape[3] ** -0.5
    scores = tf.matmul(query, tf.reshape(keys, shape), transpose_b=True) + mask
    mixed = tf.matmul(tf.nn.softmax(scores), tf.reshape(values, shape))
    return tf.transpose(mixed, [0, 2, 1, 3]), (keys, values)


def _feed_forward(
    x: tf.Tensor, layer: tf_keras.layers.Layer, weights: forward.Block
) -> tf.Tensor:
    normal = forward.layer_norm(x, weights.norm_2, layer.ln_2.epsilon)
    inner = layer.mlp.act(_project(normal, weights.mlp_in))
    return _project(inner, weights.mlp_out)


def _project(x: tf.Tensor, weights: forward.Affine) -> tf.Tensor:
    """Computes a TFConv1D, [N, C] -> [N, D], as the product that is fastest here."""
    return tf.matmul(x, weights.weight) + weights.bias[0]
