"""What the trainer needs to know of a network, and nothing more.

Steps, checkpoints, evaluation, planning and export are written against `Architecture`;
only a folder of `trainer/models` knows the network behind it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf
import tf_keras
from transformers import PretrainedConfig

from configs.schema import ModelConfig


@dataclasses.dataclass(frozen=True)
class Options:
    """How a network is computed. All but `end_token` change rounding alone.

    Attributes:
      precision: "float32" or "bfloat16", of the matrix products and of the activations
        between the layers.
      remat: which activations the backward pass computes again instead of keeping them.
        "none": only those that cost no matrix product. "attention": scores and
        probabilities as well. "block": whole blocks, of which only the input is kept.
      compiled: whether XLA compiles the computation.
      on_cpu: whether a CPU computes. Products are then of matrices of rows, by
        TensorFlow's library for CPUs, whose bfloat16 is fast; XLA compiles only what
        stands between them. `compiled` is not set.
      end_token: id of the last token of a document. Attention does not go beyond a
        document, and its positions begin at 0. None: a record is one text. The task
        "causal_lm" of GPT-2 and ALGPT2 alone knows documents.
    """

    precision: str = "float32"
    remat: str = "none"
    compiled: bool = False
    on_cpu: bool = False
    end_token: int | None = None

    @property
    def dtype(self) -> tf.DType:
        """The precision as a TensorFlow type."""
        return tf.as_dtype(self.precision)


DEFAULT_OPTIONS = Options()


class Decoder(Protocol):
    """Computes the next tokens of a text with a cache of the earlier ones.

    Dimensions: B rows, T new tokens of each, C channels, V ids of the vocabulary.
    """

    def create_cache(self, num_rows: tf.Tensor, size: tf.Tensor) -> Any:
        """Returns an empty cache for B rows of at most `size` tokens."""

    def extend(
        self, tokens: tf.Tensor, begin: tf.Tensor, cache: Any
    ) -> tuple[tf.Tensor, Any]:
        """Computes tokens, int32 [B, T], from the positions `begin`, int32 [B], on.

        A token sees the places up to its own. What stands behind it has no effect.

        Returns:
          The hidden states, float32 [B, T, C], and the cache with the tokens.
        """

    def logits(self, hidden: tf.Tensor) -> tf.Tensor:
        """Returns the logits of hidden states, float32 [B, C] -> [B, V]."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A network: how it is described, built, loaded and computed.

    A configuration is an instance of `configuration_class`, a transformers
    `PretrainedConfig` with at least `vocab_size` and `n_positions`. A model is a
    `tf_keras.Model` whose `config` is the configuration. Dimensions: B sequences,
    T tokens, C channels, V ids of the vocabulary.

    Attributes:
      name: the value of `model.architecture`.
      configuration_class: class of the configurations; `from_dict` and `to_dict` store
        one in a checkpoint.
      configure: (ModelConfig, vocabulary size, **token ids) -> the configuration that
        the fields of a config describe.
      load_configuration: Hugging Face folder or name -> its configuration. Raises
        UserError where it is not one of this architecture.
      build: configuration -> model with all variables; their values are arbitrary.
      initialize: (model, seed) assigns random weights that depend on the seed alone.
      load: Hugging Face folder or name -> model with all of its weights. Raises
        UserError.
      resize_vocabulary: (model, rows) -> model of another vocabulary. rows[i] are ids
        of the old vocabulary, whose rows' mean is row i; none: the mean of all rows.
      load_tokenizer: folder, Hugging Face name or gs://… -> tokenizer. Raises
        UserError.
      hidden_states: (model, int32 [B, T], Options, Dropout) -> `dtype` [B, T, C],
        the input of the output table. Padding stands at the end of each row.
      knows_documents: whether `hidden_states` takes Documents, too.
      output_table: model -> float32 [V, C], whose products with the hidden states are
        the logits.
      step_flops: (configuration, T, number of sequences) -> FLOPs of a training step,
        of the matrix products alone.
      activation_values: (configuration, T, remat) -> how many values the backward pass
        keeps of each token.
      as_transformers: (model, transformers' model or None) -> the model of
        transformers that computes the same, which generates and is exported: the second
        argument, or a new one. It is a TFGPT2LMHeadModel, but XLNet's is its own.
      decoder: model of `as_transformers` -> its Decoder. None: transformers generates.
      target_states: (model, int32 [B, T], bool [B, T, T], bool [B, P, T], Options,
        Dropout) -> `dtype` [B, P, C], the inputs of the output table that predict P
        targets. The masks say which token must not see which, and where the targets
        stand. None: the network only predicts each token from those before it.
      computes_on_cpu: whether it heeds `Options.on_cpu`.
      classifies: whether `build` makes a classifier where a configuration has labels.
      task: that a checkpoint is evaluated by where no run says so.
    """

    name: str
    configuration_class: type[PretrainedConfig]
    configure: Callable[..., Any]
    load_configuration: Callable[[str], Any]
    build: Callable[[Any], tf_keras.Model]
    initialize: Callable[[tf_keras.Model, int], None]
    load: Callable[[str], tf_keras.Model]
    resize_vocabulary: Callable[
        [tf_keras.Model, Sequence[Sequence[int]]], tf_keras.Model
    ]
    load_tokenizer: Callable[[str], Any]
    hidden_states: Callable[..., tf.Tensor]
    output_table: Callable[[tf_keras.Model], tf.Tensor]
    step_flops: Callable[[Any, int, int], int]
    activation_values: Callable[[Any, int, str], float]
    as_transformers: Callable[..., Any]
    decoder: Callable[[Any], Decoder] | None = None
    target_states: Callable[..., tf.Tensor] | None = None
    knows_documents: bool = False
    computes_on_cpu: bool = False
    classifies: bool = False
    task: str = "causal_lm"

    def configuration_of(self, config: ModelConfig, vocabulary_size: int) -> Any:
        """Returns the configuration of the model that a config asks for."""
        if config.initial_checkpoint:
            return self.load_configuration(config.initial_checkpoint)
        return self.configure(config, vocabulary_size)
