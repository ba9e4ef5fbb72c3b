"""Causal language modelling: each token is predicted from those before it.

Dimensions: B sequences, T tokens.
"""

import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from configs.errors import DataError
from tfrecords.manifest import Split
from trainer.models.architecture import DEFAULT_OPTIONS, Architecture, Options
from trainer.models.layers import cross_entropy
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.tasks import memorization
from trainer.tasks.task import Batch, Task

# exp of more does not fit into a float64.
_LARGEST_LOSS = 700.0
# Bytes from one word to the next, on average, up to which white space separates words.
# English takes 6, Georgian about 25, Chinese hundreds.
_LARGEST_WORD_BYTES = 40


def predictions(
    architecture: Architecture, model: tf_keras.Model, batch: Batch, *settings: Any
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the hidden states; each must not depend on later tokens: see `Task`."""
    hidden = architecture.hidden_states(model, batch["tokens"], *settings)
    place = tf.range(hidden.shape[1])
    unseen = place > place[:, None]
    return hidden, tf.broadcast_to(unseen, [hidden.shape[0], *unseen.shape])


def summed_loss(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cross-entropy summed over loss-bearing tokens, and their number.

    Args:
      architecture: of the model.
      model: owns the weights.
      batch: `tokens` int32 [B, T]; `length` int32 [B], the real tokens of each record.
      options: how the network is computed.
      dropout: at every place where the network has dropout.

    Returns:
      float32 [] in nats, float32 [].
    """
    hidden = architecture.hidden_states(model, batch["tokens"], options, dropout)
    labels, weights = _shift(batch["tokens"], batch["length"])
    table = architecture.output_table(model)
    with tf.name_scope("cross_entropy"):  # a part of a plan
        loss = cross_entropy.summed_loss(hidden, table, labels, weights)
    return loss, tf.reduce_sum(weights)


def token_losses(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the loss of predicting each position's next token, for evaluation.

    Args:
      architecture: of the model.
      model: owns the weights.
      batch: as in `summed_loss`, and `first` int32 [B], the first token of each row
        that bears loss.
      options: how the network is computed.

    Returns:
      float32 [B, T] in nats, and float32 [B, T]: 1 where the loss counts.
    """
    hidden = architecture.hidden_states(model, batch["tokens"], options)
    labels, weights = _shift(batch["tokens"], batch["length"], batch["first"])
    table = architecture.output_table(model)
    return cross_entropy.token_losses(hidden, table, labels), weights


def evaluation_sums(
    architecture: Architecture, model: tf_keras.Model, batch: Batch, options: Options
) -> dict[str, tf.Tensor]:
    """Returns the summed loss and number of loss-bearing tokens, without dropout."""
    losses, weights = token_losses(architecture, model, batch, options)
    return {
        "loss_sum": tf.reduce_sum(losses * weights),
        "token_count": tf.reduce_sum(weights),
    }


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns loss, nats per token, and perplexity.

    Perplexity is exp(sum of losses / number of tokens), never a mean over batches.

    Raises:
      DataError: no token bears loss.
    """
    if not sums["token_count"]:
        raise DataError(
            "The split must hold a token that bears loss: a record's first token has "
            "no context. Received: none. Evaluate a split with longer documents."
        )
    loss = sums["loss_sum"] / sums["token_count"]
    return {"loss": loss, "perplexity": math.exp(min(loss, _LARGEST_LOSS))}


def split_figures(sums: Mapping[str, float], split: Split) -> dict[str, float | None]:
    """Returns loss and perplexities of a whole split.

    The first token of a text has no context and bears no loss; nor does the first of a
    window, where windows do not overlap. In the figures for each word and byte it
    counts as much as the others do on average. So do truncated tokens.

    `word_perplexity` is None where white space does not separate words, as in Chinese.
    """
    loss = figures(sums)["loss"]
    nats = loss * (split.tokens + split.truncated_tokens)
    has_words = split.words and split.bytes / split.words <= _LARGEST_WORD_BYTES
    has_words = has_words and nats / split.words < _LARGEST_LOSS
    return {
        "tokens": split.tokens,
        "tokens_scored": int(sums["token_count"]),
        "words": split.words,
        "bytes": split.bytes,
        "loss": loss,
        "token_perplexity": figures(sums)["perplexity"],
        "word_perplexity": math.exp(nats / split.words) if has_words else None,
        "bits_per_byte": nats / split.bytes / math.log(2),
    }


def _shift(
    tokens: tf.Tensor, length: tf.Tensor, first: tf.Tensor | int = 1
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each position's label, int32 [B, T], and whether it counts, float32.

    The labels are the inputs; here, and nowhere else, they are shifted. A token bears
    loss when it is real and not before `first`, nor the first of its record.
    """
    place = tf.range(1, tokens.shape[1] + 1)
    counts = (place < length[:, None]) & (place >= tf.reshape(first, [-1, 1]))
    return tf.roll(tokens, -1, axis=1), tf.cast(counts, tf.float32)


TASK = Task(
    name="causal_lm",
    features=("length",),
    summed_loss=summed_loss,
    evaluation_sums=evaluation_sums,
    figures=figures,
    split_figures=split_figures,
    memorization=memorization.level,
    predictions=predictions,
)
