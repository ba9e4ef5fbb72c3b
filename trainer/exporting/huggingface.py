"""Writes a model as PyTorch's transformers and readers of safetensors expect it."""

import pathlib
import shutil

import numpy as np
import safetensors.numpy
import tensorflow as tf
from transformers import GenerationConfig, PreTrainedTokenizerFast, TFPreTrainedModel
from transformers.modeling_tf_pytorch_utils import (
    convert_tf_weight_name_to_pt_weight_name,
)

from configs.errors import UserError
from configs.progress import progress
from trainer.models.classifier import labels_of

_WEIGHTS = "model.safetensors"
_DROPOUT_RATES = ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout")


def save(
    model: TFPreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    folder: pathlib.Path,
    dtype: tf.DType,
    dropout: float | None = None,
    max_length: int | None = None,
) -> None:
    """Writes weights, configuration and tokenizer as PyTorch's `save_pretrained` does.

    Args:
      model: of transformers.
      tokenizer: of the model.
      folder: an existing folder.
      dtype: of the written weights.
      dropout: that the model was trained with; None: what its configuration says.
      max_length: tokens that the tokenizer cuts a text to, if asked to; None: as many
        as the model has positions.

    Raises:
      UserError: a weight is too large for `dtype`.
    """
    tensors = _tensors(model, dtype)
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    save_tokenizer(tokenizer, folder, max_length or model.config.n_positions)
    end, num_positions = tokenizer.eos_token_id, model.config.n_positions
    ids = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    if labels_of(model.config):
        # PyTorch's model takes the last token that is no padding for the text's last.
        ids["pad_token_id"] = tokenizer.pad_token_id
    values = {
        **model.config.to_dict(),
        **ids,
        "architectures": [type(model).__name__.removeprefix("TF")],
        "dtype": dtype.name,
        "n_ctx": num_positions,  # an old name, by which llama.cpp knows it
    }
    if dropout is not None:
        values |= {name: dropout for name in _DROPOUT_RATES if name in values}
    type(model.config).from_dict(values).save_pretrained(folder)
    if not labels_of(model.config):
        num_tokens = default_new_tokens(num_positions)
        GenerationConfig(max_new_tokens=num_tokens, **ids).save_pretrained(folder)
    # safetensors makes its file readable for the owner alone.
    shutil.copymode(folder / "config.json", folder / _WEIGHTS)


def save_tokenizer(
    tokenizer: PreTrainedTokenizerFast, folder: pathlib.Path, max_length: int
) -> None:
    """Writes the tokenizer of a model that reads that many tokens."""
    tokenizer.model_max_length = max_length
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.save_pretrained(folder)


def default_new_tokens(num_positions: int) -> int:
    """Returns how many tokens readers generate by default: they leave a prompt room."""
    return max(1, min(50, num_positions // 2))


def _tensors(model: TFPreTrainedModel, dtype: tf.DType) -> dict[str, np.ndarray]:
    """Returns the weights in `dtype`, by PyTorch's names and in its shapes."""
    variables = model.variables
    tensors = {}
    with progress("export", len(variables), "tensor", delay=1, leave=False) as bar:
        for variable in variables:
            name, transposed = convert_tf_weight_name_to_pt_weight_name(
                variable.name, tf_weight_shape=variable.shape
            )
            value = tf.cast(variable, dtype).numpy()
            if transposed.value == "simple":
                value = np.ascontiguousarray(value.T)
            if not np.isfinite(value.astype(np.float32)).all():
                raise UserError(
                    f"`--dtype` must hold every weight. Received: {dtype.name}, in "
                    f"which {name} is not finite. Use float32 or bfloat16."
                )
            tensors[name] = value.ravel() if name.endswith(".bias") else value
            bar.update()
    return tensors
