"""Writes a model as PyTorch's transformers and readers of safetensors expect it."""

import pathlib
import shutil

import numpy as np
import safetensors.numpy
import tensorflow as tf
from transformers import (
    GenerationConfig,
    GPT2Config,
    PreTrainedTokenizerFast,
    TFGPT2LMHeadModel,
)

from configs.errors import UserError
from configs.progress import progress
from trainer.models.gpt2 import weights

_WEIGHTS = "model.safetensors"


def save(
    gpt2: TFGPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: pathlib.Path,
    dtype: tf.DType,
    dropout: float | None = None,
) -> None:
    """Writes weights, configuration and tokenizer as PyTorch's `save_pretrained` does.

    Args:
      gpt2: the model.
      tokenizer: of the model.
      folder: an existing folder.
      dtype: of the written weights.
      dropout: that the model was trained with; None: what its configuration says.

    Raises:
      UserError: a weight is too large for `dtype`.
    """
    tensors = _tensors(gpt2, dtype)
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    end, num_positions = tokenizer.eos_token_id, gpt2.config.n_positions
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    values = {
        **gpt2.config.to_dict(),
        **ids,
        "architectures": ["GPT2LMHeadModel"],
        "dtype": dtype.name,
        "n_ctx": num_positions,  # an old name, by which llama.cpp knows it
    }
    if dropout is not None:
        rates = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
        values |= dict.fromkeys(rates, dropout)
    GPT2Config.from_dict(values).save_pretrained(folder)
    GenerationConfig(
        max_new_tokens=default_new_tokens(num_positions), **ids
    ).save_pretrained(folder)
    tokenizer.model_max_length = num_positions
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    # safetensors makes its file readable for the owner alone.
    shutil.copymode(folder / "config.json", folder / _WEIGHTS)


def default_new_tokens(num_positions: int) -> int:
    """Returns how many tokens readers generate by default: they leave a prompt room."""
    return max(1, min(50, num_positions // 2))


def _tensors(gpt2: TFGPT2LMHeadModel, dtype: tf.DType) -> dict[str, np.ndarray]:
    """Returns the weights in `dtype`, by PyTorch's names and in its shapes."""
    variables = weights.pytorch_weights(gpt2)
    tensors = {}
    with progress("export", len(variables), "tensor", delay=1, leave=False) as bar:
        for name, variable in variables.items():
            value = tf.cast(variable, dtype).numpy()
            if not np.isfinite(value.astype(np.float32)).all():
                raise UserError(
                    f"`--dtype` must hold every weight. Received: {dtype.name}, in "
                    f"which {name} is not finite. Use float32 or bfloat16."
                )
            tensors[name] = value.ravel() if name.endswith(".bias") else value
            bar.update()
    return tensors
