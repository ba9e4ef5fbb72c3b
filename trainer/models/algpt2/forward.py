"""The forward pass: GPT-2's, with one block for all layers.

Dimensions: B sequences, T tokens, C channels, V ids of the vocabulary, E columns of the
token embedding.
"""

import tensorflow as tf

from trainer.models.algpt2.weights import ALGPT2
from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.gpt2 import forward
from trainer.models.layers.documents import Documents, find_documents
from trainer.models.layers.dropout import NO_DROPOUT, Dropout


def hidden_states(
    model: ALGPT2,
    tokens: tf.Tensor,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
    documents: Documents | None = None,
) -> tf.Tensor:
    """Runs the network up to and including the product into the embedding's columns.

    Args:
      model: owns the weights.
      tokens: int32 [B, T]. Padding is at the end, where no real token attends to it.
      options: how to compute.
      dropout: applied wherever GPT-2 has dropout.
      documents: of the records; None: those that `options.end_token` ends.

    Returns:
      `dtype` [B, T, E].
    """
    embedded = forward.embed(output_table(model), tokens)  # (B, T, E)
    projection = tf.cast(model.projection, options.dtype)  # (E, C)
    x = tf.einsum("bte,ec->btc", tf.cast(embedded, options.dtype), projection)
    if documents is None:
        documents = find_documents(tokens, options.end_token)
    positions = forward.embed_positions(model.positions, tokens.shape[1], documents)
    x = tf.cast(x, tf.float32) + positions
    layers = [model.block] * model.config.n_layer
    x = forward.run_layers(x, layers, model.last_norm, options, dropout, documents)
    return tf.einsum("btc,ec->bte", x, projection)


def output_table(model: ALGPT2) -> tf.Tensor:
    """Returns the token embedding, float32 [V, E], which also makes the logits."""
    return tf.convert_to_tensor(model.table)
