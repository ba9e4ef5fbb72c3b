"""The configuration of a GPT-2: from a config's own fields, or from a checkpoint."""

import os
from collections.abc import Sequence

from transformers import GPT2Config

from configs.schema import ModelConfig
from trainer.models import classifier
from trainer.models.config_json import check_config, read_config

_SIZES = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
_FRACTIONS = ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop")
# The forward always does what `reorder_and_upcast_attn` asks for: float32 scores.
_KEPT = (*_SIZES, *_FRACTIONS, "n_inner", "reorder_and_upcast_attn")
# Fields that change what the network computes, and their only supported value.
_FIXED = {
    "model_type": "gpt2",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
    "add_cross_attention": False,
    "pruned_heads": {},
}
# What is kept of a classifier as well.
_OF_CLASSIFIERS = (
    *("architectures", "problem_type", "id2label", "label2id"),
    *("eos_token_id", "pad_token_id"),
)
# Activations that TensorFlow computes as PyTorch does, and PyTorch's other names.
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_fast", "gelu_new", "mish", "quick_gelu"),
    *("relu", "sigmoid", "silu", "swish", "tanh"),
)
_ALIASES = {
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}


def configure(config: ModelConfig, vocabulary_size: int, **ids: int) -> GPT2Config:
    """Returns the shape that a config's own fields describe."""
    return GPT2Config(
        vocab_size=vocabulary_size,
        n_positions=config.n_positions,
        n_embd=config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        **ids,
    )


def load_configuration(checkpoint: str, also: Sequence[str] = ()) -> GPT2Config:
    """Reads config.json, keeping the fields that describe the network.

    Args:
      checkpoint: a Hugging Face folder or name.
      also: names of fields that are kept as they are, beside GPT-2's own.

    Raises:
      UserError: it cannot be read, or describes a network that this is not.
    """
    values = read_config(checkpoint, "GPT-2")
    values = {GPT2Config.attribute_map.get(k, k): v for k, v in values.items()}
    check_config(
        values,
        checkpoint,
        default=GPT2Config(),
        kind="GPT-2",
        fixed=_FIXED,
        sizes=(*_SIZES, "n_inner"),
        fractions=_FRACTIONS,
        choices={"activation_function": (*ACTIVATIONS, *_ALIASES)},
    )
    if classifier.ARCHITECTURE in (values.get("architectures") or ()):
        also = (*also, *_OF_CLASSIFIERS)
    activation = values.get("activation_function", "gelu_new")
    is_local = os.path.isdir(checkpoint)
    # Other fields, such as generation settings, would reach transformers' `generate`
    # unseen.
    return GPT2Config(
        **{name: values[name] for name in (*_KEPT, *also) if name in values},
        activation_function=_ALIASES.get(activation, activation),
        name_or_path=os.path.abspath(checkpoint) if is_local else checkpoint,
    )
