"""Writes LoRA's adapters as PEFT does: a folder for a GPT-2 that is elsewhere.

Source: https://huggingface.co/docs/peft/developer_guides/checkpoint.
"""

import json
import pathlib

import safetensors.numpy
import tensorflow as tf
from transformers import PreTrainedTokenizerFast

from configs.errors import UserError
from trainer.checkpoints.pretrained import Pretrained
from trainer.exporting import huggingface
from trainer.models import lora

CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"


def check(trained: Pretrained) -> None:
    """Raises UserError where there are no adapters for a GPT-2 that others have."""
    problem, config = "", trained.model.config
    if not lora.adapters(trained.model):
        problem = "a model without LoRA"
    elif trained.architecture.name != "gpt2":
        problem = f"adapters of {trained.architecture.name}"
    elif not config.name_or_path:
        problem = "adapters of random weights, which nobody else has"
    else:
        rows = trained.architecture.load_configuration(config.name_or_path).vocab_size
        if rows != config.vocab_size:
            problem = (
                f"adapters of a vocabulary of {config.vocab_size}, where "
                f"{config.name_or_path} has {rows}"
            )
    if problem:
        raise UserError(
            "`--format=peft` needs LoRA on a GPT-2 of `model.initial_checkpoint`. "
            f"Received: {problem}. Use `--format=huggingface`."
        )


def save(
    trained: Pretrained,
    tokenizer: PreTrainedTokenizerFast,
    folder: pathlib.Path,
    dtype: tf.DType,
) -> None:
    """Writes adapters, their configuration and the tokenizer.

    Args:
      trained: what `check` accepts.
      tokenizer: of the model.
      folder: an existing folder.
      dtype: of the written weights.
    """
    adapters = {
        name: adapter
        for name, layer in lora.projections(trained.model).items()
        if (adapter := lora.adapter_of(layer))
    }
    tensors = {}
    for name, adapter in adapters.items():
        for part, matrix in (("lora_A", adapter.down), ("lora_B", adapter.up)):
            # As torch.nn.Linear has them: [columns, rows].
            value = tf.cast(tf.transpose(matrix), dtype).numpy()
            tensors[f"base_model.model.{name}.{part}.weight"] = value
    settings = next(iter(adapters.values())).settings
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": trained.model.config.name_or_path,
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "target_modules": list(adapters),
        "fan_in_fan_out": True,  # the layout of GPT-2's Conv1D
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    huggingface.save_tokenizer(tokenizer, folder, trained.model.config.n_positions)
    # safetensors makes its file readable for the owner alone.
    (folder / _WEIGHTS).chmod((folder / CONFIG).stat().st_mode)
