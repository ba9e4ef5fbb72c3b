"""Writes a model as a SavedModel, for TensorFlow alone or TensorFlow Serving.

Each input and output has a row for each text, also settings and seeds. So a server may
batch the requests of several clients, and a request may be a list of rows. A row's
result does not depend on the other rows.
"""

import pathlib

import tensorflow as tf
from transformers import PreTrainedTokenizerFast, TFGPT2LMHeadModel

from trainer.generation import loop, scores
from trainer.models.gpt2 import cached

_TOKENS = tf.TensorSpec([None, None], tf.int32, "tokens")
_LENGTH = tf.TensorSpec([None], tf.int32, "length")


class _Served(tf.Module):
    """Holds the signatures; rows are padded at their end, with any token."""

    def __init__(
        self, gpt2: TFGPT2LMHeadModel, end_of_text_id: int, max_new_tokens: int
    ):
        super().__init__()
        self._gpt2 = gpt2
        self._end = end_of_text_id
        self._max_new_tokens = max_new_tokens

    @tf.function(input_signature=[_TOKENS])
    def logits(self, tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns `logits` float32 [B, T, V]; padding changes none before it.

        Args:
          tokens: int32 [B, T].
        """
        tokens = self._checked(tokens)
        return {"logits": self._gpt2(tokens).logits}

    @tf.function(input_signature=[_TOKENS, _LENGTH])
    def score(self, tokens: tf.Tensor, length: tf.Tensor) -> dict[str, tf.Tensor]:
        """Scores each token but the first by those before it.

        Args:
          tokens: int32 [B, T].
          length: int32 [B], the real tokens of each row.

        Returns:
          `losses` float32 [B, T - 1] in nats, 0 for padding; `loss_sum` float32 [B];
          `token_count` int32 [B].
        """
        tokens = self._checked(tokens)
        length = _check_length(length, tokens)
        real = tf.range(1, tf.shape(tokens)[1]) < length[:, None]
        labels = tf.where(real, tokens[:, 1:], 0)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            labels, self._gpt2(tokens).logits[:, :-1]
        )
        losses = tf.where(real, losses, 0.0)
        return {
            "losses": losses,
            "loss_sum": tf.reduce_sum(losses, axis=1),
            "token_count": tf.reduce_sum(tf.cast(real, tf.int32), axis=1),
        }

    @tf.function(
        input_signature=[
            _TOKENS,
            _LENGTH,
            tf.TensorSpec([None], tf.float32, "temperature"),
            tf.TensorSpec([None], tf.int32, "top_k"),
            tf.TensorSpec([None], tf.float32, "top_p"),
            tf.TensorSpec([None], tf.int32, "seed"),
        ]
    )
    def generate(
        self,
        tokens: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Continues each row, as `trainer.generate` does with the same settings.

        Args:
          tokens: int32 [B, T].
          length: int32 [B], the real tokens of each row.
          temperature: float32 [B], 0 takes the likeliest token each time.
          top_k: int32 [B], 0: sample among all tokens.
          top_p: float32 [B], 1: sample among all tokens.
          seed: int32 [B].

        Returns:
          `tokens` int32 [B, max_new_tokens], padded with end-of-text.
        """
        tokens = self._checked(tokens, self._max_new_tokens)
        length = _check_length(length, tokens)
        _check_settings(temperature, top_k, top_p)
        scale = tf.cast(temperature > 0, tf.float32)[:, None]

        def score(logits: tf.Tensor, _: loop.Text, number: tf.Tensor) -> tf.Tensor:
            likely = scores.keep_likely(logits, temperature, top_k, top_p)
            sample = tf.zeros_like(seed)
            return scores.add_noise(likely, number, seed, sample, scale)

        new = loop.continue_rows(
            cached.CachedDecoder(self._gpt2),
            loop.Text(tokens, length),
            max_new_tokens=self._max_new_tokens,
            end=self._end,
            score=score,
            is_finished=lambda new: new == self._end,
        )
        return {"tokens": new}

    def _checked(self, tokens: tf.Tensor, num_new_tokens: int = 0) -> tf.Tensor:
        """Returns tokens that have a place in the model's positions and vocabulary."""
        config = self._gpt2.config
        longest = config.n_positions - num_new_tokens
        new = f", less {num_new_tokens} new tokens" if num_new_tokens else ""
        checks = [
            _require(
                tf.shape(tokens)[1] <= longest,
                f"A row of `tokens` must have at most {longest} of them: the "
                f"{config.n_positions} positions of the model{new}. Received [rows, "
                "tokens]:",
                tf.shape(tokens),
            ),
            _require(
                (tokens >= 0) & (tokens < config.vocab_size),
                f"`tokens` must be from 0 to {config.vocab_size - 1}. Received:",
                tokens,
            ),
        ]
        # Otherwise the model may look them up first, and fail with its own message.
        with tf.control_dependencies(checks):
            return tf.identity(tokens)


def _check_length(length: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    width = tf.shape(tokens)[1]
    rule = "`length` must be from 1 to the tokens of a row, padding included. Received:"
    check = _require((length >= 1) & (length <= width), rule, length)
    with tf.control_dependencies([check]):
        return tf.identity(length)


def _check_settings(temperature: tf.Tensor, top_k: tf.Tensor, top_p: tf.Tensor) -> None:
    _require(
        tf.math.is_finite(temperature) & (temperature >= 0),
        "`temperature` must be 0 or more. Received:",
        temperature,
    )
    _require(top_k >= 0, "`top_k` must be 0 or more. Received:", top_k)
    _require(
        (top_p >= 0) & (top_p <= 1), "`top_p` must be from 0 to 1. Received:", top_p
    )


def _require(condition: tf.Tensor, rule: str, received: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(condition), [rule, received], summarize=8)


def save(
    gpt2: TFGPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: pathlib.Path,
    max_new_tokens: int,
) -> None:
    """Writes the SavedModel, and the tokenizer into its `assets.extra`."""
    served = _Served(gpt2, tokenizer.eos_token_id, max_new_tokens)
    saved = tf.Module()
    # The variables alone: the Keras model would bring all of its own functions.
    saved.weights = list(gpt2.variables)
    signatures = {
        "serving_default": served.generate,
        "generate": served.generate,
        "score": served.score,
        "logits": served.logits,
    }
    tf.saved_model.save(saved, str(folder), signatures)
    tokenizer.save_pretrained(folder / "assets.extra")
