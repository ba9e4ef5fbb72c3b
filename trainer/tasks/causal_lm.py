"""Causal language modelling: each token is predicted from those before it.

Dimensions: B sequences, T tokens.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
import tf_keras

from configs.errors import DataError
from configs.schema import TrainingConfig
from tfrecords import schema
from tfrecords.manifest import Manifest, Split
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
      batch: `tokens` int32 [B, T]; `length` int32 [B], the real tokens of each record;
        of completions `mask` int32 [B, T], not 0 of the tokens that bear loss.
      options: how the network is computed.
      dropout: at every place where the network has dropout.

    Returns:
      float32 [] in nats, float32 [].
    """
    hidden = architecture.hidden_states(model, batch["tokens"], options, dropout)
    labels, weights = _shift(batch)
    table = architecture.output_table(model)
    with tf.name_scope("cross_entropy"):  # a part of a plan
        loss = cross_entropy.summed_loss(
            *(hidden, table, labels, weights),
            compiled=options.compiled,
            on_cpu=options.on_cpu,
        )
    return loss, tf.reduce_sum(weights)


def token_losses(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """Returns the loss of predicting each position's next token, for evaluation.

    Args:
      architecture: of the model.
      model: owns the weights.
      batch: as in `summed_loss`, and `first` int32 [B], the first token of each row
        that bears loss.
      options: how the network is computed.

    Returns:
      float32 [B, T] in nats; float32 [B, T], 1 where the loss counts; of completions
      bool [B, T], whether the next token is the likeliest.
    """
    hidden = architecture.hidden_states(model, batch["tokens"], options)
    labels, weights = _shift(batch)
    table = architecture.output_table(model)
    if schema.MASK in batch:
        losses, is_right = cross_entropy.token_scores(hidden, table, labels)
        return losses, weights, is_right
    return cross_entropy.token_losses(hidden, table, labels), weights, None


def evaluation_sums(
    architecture: Architecture, model: tf_keras.Model, batch: Batch, options: Options
) -> dict[str, tf.Tensor]:
    """Returns the summed loss and number of loss-bearing tokens, without dropout.

    Of completions also their number, and how many of them the model writes exactly,
    taking the likeliest token each time.
    """
    losses, weights, is_right = token_losses(architecture, model, batch, options)
    exact = {}
    if is_right is not None:
        # An earlier turn of a conversation, which has another number, is none of them.
        is_last = tf.roll(batch[schema.MASK], -1, axis=1) == 1
        exact = _exact_matches(is_right, weights * tf.cast(is_last, tf.float32))
    return {
        **exact,
        "loss_sum": tf.reduce_sum(losses * weights),
        "token_count": tf.reduce_sum(weights),
    }


def _exact_matches(is_right: tf.Tensor, weights: tf.Tensor) -> dict[str, tf.Tensor]:
    """Counts completions, and those of which each token is the likeliest.

    As long as all tokens are right, what the model writes is what it reads here. So
    these are the completions that it writes exactly.

    Args:
      is_right: bool [B, T], whether the next token is the likeliest.
      weights: float32 [B, T], 1 where the next token is of a completion.
    """
    wrong = weights * tf.cast(~is_right, tf.float32)
    # A completion begins where the token before is not of one.
    starts = tf.nn.relu(weights - tf.pad(weights, [[0, 0], [1, 0]])[:, :-1])
    num_rows, length = weights.shape
    number = tf.cast(tf.cumsum(starts, axis=1), tf.int32)  # 0: before the first
    number += tf.range(num_rows)[:, None] * (length + 1)
    errors = tf.math.unsorted_segment_sum(wrong, number, num_rows * (length + 1))
    tokens = tf.math.unsorted_segment_sum(weights, number, num_rows * (length + 1))
    exact = (tokens > 0) & (errors == 0)
    return {
        "completion_count": tf.reduce_sum(starts),
        "exact_count": tf.reduce_sum(tf.cast(exact, tf.float32)),
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
    values = {"loss": loss, "perplexity": math.exp(min(loss, _LARGEST_LOSS))}
    if "completion_count" in sums:
        values["exact_match"] = sums["exact_count"] / sums["completion_count"]
    return values


def split_figures(sums: Mapping[str, float], split: Split) -> dict[str, Any]:
    """Returns loss and perplexities of a whole split.

    The first token of a text has no context and bears no loss; nor does the first of a
    window, where windows do not overlap. In the figures for each word and byte it
    counts as much as the others do on average. So do truncated tokens.

    `word_perplexity` is None where white space does not separate words, as in Chinese.
    Of completions, prompts are not scored: so there are no figures for words and bytes.
    """
    if "completion_count" in sums:
        return {
            "completions": int(sums["completion_count"]),
            "truncated": split.truncated_documents,
            "tokens_scored": int(sums["token_count"]),
            **figures(sums),
        }
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


def _shift(batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each position's label, int32 [B, T], and whether it counts, float32.

    The labels are the inputs; here, and nowhere else, they are shifted. A token bears
    loss when it is real and not before `first`, nor the first of its record. Of
    completions, it also must be in the mask.
    """
    tokens, first = batch["tokens"], batch.get("first", tf.constant(1))
    place = tf.range(1, tokens.shape[1] + 1)
    counts = (place < batch["length"][:, None]) & (place >= tf.reshape(first, [-1, 1]))
    if schema.MASK in batch:
        counts &= tf.roll(batch[schema.MASK], -1, axis=1) > 0
    return tf.roll(tokens, -1, axis=1), tf.cast(counts, tf.float32)


def of_run(task: Task, settings: TrainingConfig, manifest: Manifest) -> Task:
    """Returns the task for a dataset: of completions it reads the mask.

    A completion may be certain, as the text of a language is not: there is no alarm for
    a loss that is too good.
    """
    del settings
    if not manifest.masked:
        return task
    features = (*task.features, schema.MASK)
    return dataclasses.replace(task, features=features, memorization=None)


TASK = Task(
    name="causal_lm",
    features=("length",),
    summed_loss=summed_loss,
    evaluation_sums=evaluation_sums,
    figures=figures,
    split_figures=split_figures,
    memorization=memorization.level,
    predictions=predictions,
    of_run=of_run,
)
