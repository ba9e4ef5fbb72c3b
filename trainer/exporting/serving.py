"""Writes a model as a SavedModel, for TensorFlow alone or TensorFlow Serving."""

import pathlib

import tensorflow as tf
from transformers import GPT2TokenizerFast, TFGPT2LMHeadModel, TFLogitsProcessorList

from trainer.generation.decoding import Noise

_TOKENS = tf.TensorSpec([None, None], tf.int32)
_LENGTH = tf.TensorSpec([None], tf.int32)


class _Served(tf.Module):
    """Holds the signatures `score` and `generate`; rows are padded at their end."""

    def __init__(
        self, gpt2: TFGPT2LMHeadModel, end_of_text_id: int, max_new_tokens: int
    ):
        super().__init__()
        self._gpt2 = gpt2
        self._end = end_of_text_id
        self._max_new_tokens = max_new_tokens

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
            tf.TensorSpec([], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def generate(
        self,
        tokens: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        seed: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Continues each row.

        Args:
          tokens: int32 [B, T].
          length: int32 [B], the real tokens of each row.
          temperature: float32 [], 0 takes the likeliest token each time.
          seed: int32 [].

        Returns:
          `tokens` int32 [B, max_new_tokens], padded with end-of-text.
        """
        width = tf.shape(tokens)[1]
        place = tf.range(width) - (width - length)[:, None]
        rows = tf.gather(tokens, place % width, batch_dims=1)  # padding to the left
        mask = tf.cast(place >= 0, tf.int32)
        noise = Noise(seed, tf.range(tf.shape(tokens)[0]), width, temperature)
        output = self._gpt2.generate(
            rows,
            attention_mask=mask,
            logits_processor=TFLogitsProcessorList([noise]),
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._end,
        )
        return {"tokens": output[:, width:]}


def save(
    gpt2: TFGPT2LMHeadModel,
    tokenizer: GPT2TokenizerFast,
    folder: pathlib.Path,
    max_new_tokens: int,
) -> None:
    """Writes the SavedModel, and the tokenizer into its `assets.extra`."""
    served = _Served(gpt2, tokenizer.eos_token_id, max_new_tokens)
    saved = tf.Module()
    # The variables alone: the Keras model would bring all of its own functions.
    saved.weights = list(gpt2.variables)
    signatures = {"score": served.score, "generate": served.generate}
    tf.saved_model.save(saved, str(folder), signatures)
    tokenizer.save_pretrained(folder / "assets.extra")
