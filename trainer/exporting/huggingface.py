"""Writes a model as PyTorch's transformers and readers of safetensors expect it."""

import pathlib
import shutil

import numpy as np
import safetensors.numpy
import tensorflow as tf
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2TokenizerFast,
    TFGPT2LMHeadModel,
)

from configs.errors import UserError
from configs.progress import progress
from trainer.models.gpt2 import weights

_WEIGHTS = "model.safetensors"


def save(
    gpt2: TFGPT2LMHeadModel,
    tokenizer: GPT2TokenizerFast,
    folder: pathlib.Path,
    dtype: tf.DType,
) -> None:
    """Writes weights, configuration and tokenizer as PyTorch's `save_pretrained` does.

    Args:
      gpt2: the model.
      tokenizer: of the model.
      folder: an existing folder.
      dtype: of the written weights.

    Raises:
      UserError: a weight is too large for `dtype`.
    """
    tensors = _tensors(gpt2, dtype)
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    end = tokenizer.eos_token_id
    config = GPT2Config.from_dict(
        {
            **gpt2.config.to_dict(),
            "architectures": ["GPT2LMHeadModel"],
            "dtype": dtype.name,
            "bos_token_id": end,
            "eos_token_id": end,
        }
    )
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end
    ).save_pretrained(folder)
    tokenizer.model_max_length = gpt2.config.n_positions
    tokenizer.save_pretrained(folder)
    # safetensors makes its file readable for the owner alone.
    shutil.copymode(folder / "config.json", folder / _WEIGHTS)


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
