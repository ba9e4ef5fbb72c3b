"""Estimates what training on a CPU needs of this machine's memory."""

import os
from collections.abc import Sequence

import tensorflow as tf
import tf_keras
from absl import logging

from configs.schema import Config, OptimizerConfig
from trainer.models import lora, variables
from trainer.models.architecture import Architecture
from trainer.models.layers import cross_entropy
from trainer.optimizers.factory import beta_1
from trainer.optimizers.muon import is_hidden_matrix

# Python, TensorFlow and transformers themselves.
_PROGRAM_BYTES = 700 * 2**20


def estimate(
    model: tf_keras.Model,
    trained: Sequence[tf.Variable],
    architecture: Architecture,
    config: Config,
    sequence_length: int,
    num_replicas: int,
) -> dict[str, int]:
    """Returns the bytes that training takes of this machine, by what they are for.

    Args:
      model: the model that is trained.
      trained: those of its variables that are updated.
      architecture: of the model.
      config: of the run.
      sequence_length: T, tokens of a record.
      num_replicas: CPU devices of this machine, each with a copy of everything.
    """
    settings = config.training
    weights = variables.num_bytes(model.variables)
    saved = variables.num_bytes(lora.trained(model)) or weights
    vocabulary, channels = architecture.output_table(model).shape
    state = _state_bytes(config.optimizer, trained)
    # At the update: the gradients, the weights as they were, and their difference, of
    # which the norm is logged. The embedding has two gradients more, since it also
    # makes the logits, and that one is scaled.
    updated = variables.num_bytes(trained)
    gradients = 3 * updated
    if any(variable.shape == (vocabulary, channels) for variable in trained):
        gradients += 2 * 4 * vocabulary * channels
    tokens = settings.microbatch_size * sequence_length
    width = 2 if settings.precision == "bfloat16" else 4
    values = architecture.activation_values(
        model.config, sequence_length, settings.remat
    )
    # Of a step: logits and their gradients in float32, and these rounded and scaled. Of
    # an evaluation: logits, and gradients that TensorFlow computes with the loss.
    evaluated = sequence_length * evaluation_batch_size(
        settings.microbatch_size, sequence_length
    )
    chunk = cross_entropy.CHUNK_TOKENS
    rows = max(3 * min(tokens, chunk), 2 * min(evaluated, chunk))
    logits = rows * vocabulary * 4
    if width == 2:  # the table and its gradient, which are in bfloat16 as well
        logits += 2 * vocabulary * channels * width
    replica = {
        "weights": weights,
        "optimizer state": state,
        "gradients": gradients,
        "activations": int(tokens * values * width),
        "logits": logits,
    }
    return {
        **{name: num_replicas * size for name, size in replica.items()},
        "copy to save": saved + state,
        "program": _PROGRAM_BYTES,
    }


def evaluation_batch_size(microbatch_size: int, sequence_length: int) -> int:
    """Returns how many windows a CPU device scores at once while a run trains.

    That is 1,024 tokens or more: for fewer rows its products are slower, and without
    gradients more of them take little memory. Figures change by rounding alone.
    """
    return max(microbatch_size, -(-1024 // sequence_length))


def _state_bytes(optimizer: OptimizerConfig, trained: Sequence[tf.Variable]) -> int:
    """Returns the bytes of the moments.

    Adafactor's rows and columns are nothing beside them.
    """
    updated = variables.num_bytes(trained)
    if optimizer.name == "muon":
        return 2 * updated - variables.num_bytes(filter(is_hidden_matrix, trained))
    num_moments = 2 if optimizer.name == "adamw" else int(beta_1(optimizer) > 0)
    return num_moments * updated


def report(num_bytes: dict[str, int], available_bytes: int | None = None) -> None:
    """Logs an estimate; warns where it exceeds the memory that is available.

    Args:
      num_bytes: what `estimate` returned.
      available_bytes: of this machine; None: what the system says.
    """
    needed = sum(num_bytes.values())
    logging.info(
        "training takes about %s of memory: %s",
        _text(needed),
        ", ".join(f"{name} {_text(size)}" for name, size in num_bytes.items()),
    )
    available = available_bytes or system_memory()
    if available is not None and needed > available:
        logging.warning(
            "Training takes about %s of memory; %s are available, and the run may be "
            "killed. Use a smaller model or `training.microbatch_size`, "
            "`training.remat=block`, fewer devices, or optimizer.name=adafactor.",
            _text(needed),
            _text(available),
        )


def system_memory() -> int | None:
    """Returns the bytes that programs can take of this machine; None: not known."""
    try:
        with open("/proc/meminfo") as lines:  # free, or of caches that can go
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _text(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"
