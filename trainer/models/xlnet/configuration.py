"""The configuration of an XLNet: from a config's own fields, or from a checkpoint."""

import os
from typing import Any

from transformers import XLNetConfig

from configs.errors import UserError
from configs.schema import ModelConfig
from trainer.models.config_json import check_config, read_config
from trainer.models.gpt2.configuration import ACTIVATIONS

# XLNet's positions are relative: a checkpoint that states none has no limit.
_NO_LIMIT = 2**20
_SIZES = ("vocab_size", "n_layer", "n_head", "d_model", "d_inner")
# Fields that change what the network computes, and their only supported value.
_FIXED = {
    "model_type": "xlnet",
    "attn_type": "bi",
    "bi_data": False,
    "clamp_len": -1,
    "same_length": False,
    "tie_word_embeddings": True,
}
_KEPT = (
    *(*_SIZES, "n_positions", "ff_activation", "layer_norm_eps", "dropout"),
    *("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id"),
)


class LimitedXLNetConfig(XLNetConfig):
    """XLNet's configuration with a limit on the tokens of a text.

    Args:
      n_positions: the limit.
      **values: of XLNetConfig.

    Raises:
      UserError: the channels are odd in number.
    """

    attribute_map = XLNetConfig.attribute_map | {"n_embd": "d_model"}

    def __init__(self, n_positions: int = _NO_LIMIT, **values: Any):
        # Texts are computed whole, without memories of earlier ones.
        super().__init__(**{**values, "use_mems_eval": False, "mem_len": None})
        self.n_positions = n_positions
        if self.d_model % 2:
            raise UserError(
                "XLNet's channels (`model.n_embd`, or `d_model` in config.json) must be"
                f" even: a distance is a sine and a cosine. Received: {self.d_model}. "
                f"Use {self.d_model + 1}."
            )


def configure(
    config: ModelConfig, vocabulary_size: int, **ids: int
) -> LimitedXLNetConfig:
    """Returns the shape that a config's own fields describe."""
    if "eos_token_id" in ids:
        ids["pad_token_id"] = ids["eos_token_id"]
    return LimitedXLNetConfig(
        config.n_positions,
        vocab_size=vocabulary_size,
        d_model=config.n_embd,
        d_inner=4 * config.n_embd,
        n_layer=config.n_layer,
        n_head=config.n_head,
        **ids,
    )


def load_configuration(checkpoint: str) -> LimitedXLNetConfig:
    """Reads config.json, keeping the fields that describe the network.

    Raises:
      UserError: it cannot be read, or describes a network that this is not.
    """
    values = read_config(checkpoint, "XLNet")
    values = {XLNetConfig.attribute_map.get(k, k): v for k, v in values.items()}
    check_config(
        values,
        checkpoint,
        default=LimitedXLNetConfig(),
        kind="XLNet",
        fixed=_FIXED,
        sizes=(*_SIZES, "n_positions"),
        fractions=("dropout", "layer_norm_eps"),
        choices={"ff_activation": ACTIVATIONS},
    )
    is_local = os.path.isdir(checkpoint)
    return LimitedXLNetConfig(
        **{name: values[name] for name in _KEPT if name in values},
        name_or_path=os.path.abspath(checkpoint) if is_local else checkpoint,
    )
