"""Permutation language modelling: tokens are predicted in an order that is drawn.

A sixth of a record's tokens are targets, in spans of up to 5. Each is predicted from
all tokens that are no targets, and from the targets before it in the order. What is
drawn is a hash of (seed, step, row) and is made on the device, with static shapes.

Source: Yang et al., "XLNet" (2019), https://arxiv.org/abs/1906.08237, sections 2.2 and
2.3; spans as in transformers' DataCollatorForPermutationLanguageModeling.

Dimensions: B sequences, T tokens, P targets.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf
import tf_keras

from configs.errors import DataError, UserError
from configs.schema import TrainingConfig
from tfrecords.manifest import Manifest, Split
from trainer.models.architecture import DEFAULT_OPTIONS, Architecture, Options
from trainer.models.layers import cross_entropy, noise
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.tasks import memorization
from trainer.tasks.task import Batch, Task

_TOKENS_PER_TARGET = 6
_LARGEST_SPAN = 5
# Of the noise, beyond all sites of dropout.
_FIRST_SITE = 1 << 20
_LARGEST_LOSS = 700.0  # exp of more does not fit into a float64


class Draw(NamedTuple):
    """What is predicted, and what it must not see.

    Attributes:
      unseen: bool [B, T, T]: token i must not see token j.
      targets: bool [B, P, T]: the place of each target; a row of an empty slot is 0.
    """

    unseen: tf.Tensor
    targets: tf.Tensor


def draw(
    keys: tf.Tensor, num_tokens: int, length: tf.Tensor, first: tf.Tensor | int = 0
) -> Draw:
    """Draws the targets of each row, and their order.

    Args:
      keys: uint32 [B].
      num_tokens: T.
      length: int32 [B], the real tokens of each row.
      first: int32 [B], the first token of each row that may be a target.
    """
    place = tf.range(num_tokens)
    is_real = place < length[:, None]  # (B, T)
    allowed = is_real & (place >= tf.reshape(first, [-1, 1]))
    num_allowed = tf.reduce_sum(tf.cast(allowed, tf.int32), axis=1)
    num_slots = max(num_tokens // _TOKENS_PER_TARGET, 1)
    num_targets = tf.clip_by_value(num_allowed // _TOKENS_PER_TARGET, 1, num_slots)
    # The first target must see something.
    num_targets = tf.minimum(num_targets, tf.minimum(num_allowed, length - 1))

    # All spans' tokens come first, and then single ones, each in an order by chance.
    group = tf.where(allowed, tf.where(_spans(keys, num_tokens), 0, 1), 2)
    rank = _rank(group * 2**23 + _noise(keys, 2, num_tokens, 2**23))
    is_target = allowed & (rank < num_targets[:, None])
    turn = tf.where(is_target, _noise(keys, 3, num_tokens, 2**23), -1)
    unseen = is_target[:, None, :] & (turn[:, :, None] <= turn[:, None, :])
    slot = tf.cumsum(tf.cast(is_target, tf.int32), axis=1) - 1
    targets = is_target[:, None, :] & (
        tf.range(num_slots)[None, :, None] == slot[:, None, :]
    )
    return Draw(unseen | ~is_real[:, None, :], targets)


def _spans(keys: tf.Tensor, num_tokens: int) -> tf.Tensor:
    """Returns which tokens spans cover, bool [B, T]: n tokens anywhere in 6 n."""
    num = -(-num_tokens // _TOKENS_PER_TARGET)
    sizes = 1 + _noise(keys, 0, num, _LARGEST_SPAN)  # (B, S)
    begin = tf.cumsum(sizes * _TOKENS_PER_TARGET, axis=1, exclusive=True)
    begin += _noise(keys, 1, num, sizes * (_TOKENS_PER_TARGET - 1) + 1)
    place = tf.range(num_tokens)[None, :, None]
    inside = (place >= begin[:, None]) & (place < (begin + sizes)[:, None])
    return tf.reduce_any(inside, axis=2)


def _noise(keys: tf.Tensor, site: int, num: int, bound: tf.Tensor | int) -> tf.Tensor:
    """Returns int32 [B, num] from 0 to below `bound`, which is at most 2**23."""
    offset = (_FIRST_SITE + site) * noise.GOLDEN_GAMMA % 2**32
    keys = noise.mix_bits(keys + tf.constant(offset, tf.uint32))
    random = noise.bits(keys, tf.TensorShape([None, num]), [1])
    high = tf.bitwise.right_shift(random, tf.constant(9, tf.uint32))
    # float32 holds integers below 2**24.
    share = tf.cast(high, tf.float32) * 2.0**-23
    return tf.cast(share * tf.cast(bound, tf.float32), tf.int32)


def _rank(values: tf.Tensor) -> tf.Tensor:
    """Returns how many values of the row come before each, int32 [B, T]; no sort."""
    mine, others = values[:, :, None], values[:, None, :]
    place = tf.range(values.shape[1])
    before = (others < mine) | ((others == mine) & (place < place[:, None]))
    return tf.reduce_sum(tf.cast(before, tf.int32), axis=2)


def _row_keys(tokens: tf.Tensor) -> tf.Tensor:
    """Returns the same key for the same row each time, uint32 [B]."""
    place = tf.cast(tf.range(tokens.shape[1]), tf.uint32)
    place *= tf.constant(noise.GOLDEN_GAMMA, tf.uint32)
    mixed = noise.mix_bits(tf.cast(tokens, tf.uint32) + place)
    return noise.mix_bits(tf.reduce_sum(mixed, axis=1))


def predictions(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the targets' states, and what they must not see: see `Task`."""
    drawn = draw(dropout.keys, batch["tokens"].shape[1], batch["length"])
    states = _states(architecture, model, batch, drawn, options, dropout)
    of_targets = drawn.targets[:, :, :, None] & drawn.unseen[:, None]  # (B, P, T, T)
    return states, tf.reduce_any(of_targets, axis=2)


def summed_loss(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cross-entropy summed over the targets, and their number.

    Args:
      architecture: of the model.
      model: owns the weights.
      batch: `tokens` int32 [B, T]; `length` int32 [B], the real tokens of each record.
      options: how the network is computed.
      dropout: at every place where the network has dropout. The targets are drawn from
        its keys, too.

    Returns:
      float32 [] in nats, float32 [].
    """
    drawn = draw(dropout.keys, batch["tokens"].shape[1], batch["length"])
    states = _states(architecture, model, batch, drawn, options, dropout)
    labels, weights = _labels(batch["tokens"], drawn.targets)
    table = architecture.output_table(model)
    with tf.name_scope("cross_entropy"):  # a part of a plan
        loss = cross_entropy.summed_loss(
            states, table, labels, weights, compiled=options.compiled
        )
    return loss, tf.reduce_sum(weights)


def evaluation_sums(
    architecture: Architecture, model: tf_keras.Model, batch: Batch, options: Options
) -> dict[str, tf.Tensor]:
    """Returns the summed loss and number of targets; a row's draw is always the same.

    `batch` is as in `summed_loss`, and has `first`, int32 [B].
    """
    tokens = batch["tokens"]
    keys = _row_keys(tokens)
    drawn = draw(keys, tokens.shape[1], batch["length"], batch["first"])
    states = _states(architecture, model, batch, drawn, options, NO_DROPOUT)
    labels, weights = _labels(tokens, drawn.targets)
    table = architecture.output_table(model)
    losses = cross_entropy.token_losses(states, table, labels)
    return {
        "loss_sum": tf.reduce_sum(losses * weights),
        "target_count": tf.reduce_sum(weights),
    }


def of_run(task: Task, settings: TrainingConfig, manifest: Manifest) -> Task:
    """Returns the task; raises DataError for completions, whose mask it ignores."""
    del settings
    if manifest.masked:
        raise DataError(
            "`training.task=permutation_lm` draws its targets from whole texts. "
            "Received: a dataset of mode completion. Use `training.task=causal_lm`."
        )
    return task


def _states(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    drawn: Draw,
    *settings: Any,
) -> tf.Tensor:
    if architecture.target_states is None:
        raise UserError(
            "`training.task=permutation_lm` needs an architecture that predicts tokens "
            f"in any order, such as xlnet. Received: `model.architecture="
            f"{architecture.name}`. Use it with `training.task=causal_lm`."
        )
    return architecture.target_states(model, batch["tokens"], *drawn, *settings)


def _labels(tokens: tf.Tensor, targets: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each slot's token, int32 [B, P], and whether it counts, float32."""
    labels = tf.reduce_sum(tf.where(targets, tokens[:, None, :], 0), axis=2)
    return labels, tf.cast(tf.reduce_any(targets, axis=2), tf.float32)


def figures(sums: Mapping[str, float]) -> dict[str, float]:
    """Returns loss, nats per target, and its exponential.

    Raises:
      DataError: there was no target.
    """
    if not sums["target_count"]:
        raise DataError(
            "The split must hold a record of two tokens at least, of which one can be "
            "predicted. Received: none. Evaluate a split with longer documents."
        )
    loss = sums["loss_sum"] / sums["target_count"]
    perplexity = math.exp(min(loss, _LARGEST_LOSS))
    return {"loss": loss, "permutation_perplexity": perplexity}


def split_figures(sums: Mapping[str, float], split: Split) -> dict[str, Any]:
    """Returns the figures of a whole split, and what they are not."""
    return {
        "objective": "permutation language modelling: a sixth of the tokens, each "
        "predicted from tokens on both of its sides. This is not a left-to-right "
        "perplexity, and does not compare with one",
        "tokens": split.tokens,
        "targets_scored": int(sums["target_count"]),
        **figures(sums),
    }


TASK = Task(
    name="permutation_lm",
    features=("length",),
    summed_loss=summed_loss,
    evaluation_sums=evaluation_sums,
    figures=figures,
    split_figures=split_figures,
    memorization=memorization.level,
    predictions=predictions,
    of_run=of_run,
)
