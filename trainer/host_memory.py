"""What training on a CPU needs of this machine's memory, from shapes alone."""

import os

from absl import logging
from transformers import PretrainedConfig

from configs.schema import Config
from trainer.layers import cross_entropy

# Python, TensorFlow and transformers themselves.
_PROGRAM_BYTES = 700 * 2**20


def estimate(
    shape: PretrainedConfig, config: Config, sequence_length: int, num_replicas: int
) -> dict[str, int]:
    """Returns the bytes that training takes of the host, by what they are for.

    Args:
      shape: of the model.
      config: of the run.
      sequence_length: T, tokens of a record.
      num_replicas: CPU devices, each with a copy of everything.
    """
    settings, rule = config.training, config.optimizer
    channels, vocabulary = shape.n_embd, shape.vocab_size
    # A block: four projections of 12 C^2 in all, their biases and two layer norms.
    block = 12 * channels**2 + 13 * channels
    parameters = (vocabulary + shape.n_positions + 2) * channels
    parameters += shape.n_layer * block
    weights = 4 * parameters  # float32
    # Moments of a parameter's size; Adafactor's rows and columns are nothing beside it.
    beta_1 = rule.beta_1 or 0.0
    moments = 2 if rule.name == "adamw" else int(beta_1 > 0)
    # At the update: the gradients, the weights as they were, and their difference, of
    # which the norm is logged. The embedding has two gradients more, since it also
    # makes the logits, and that one is scaled.
    gradients = 3 * weights + 2 * 4 * vocabulary * channels
    # What a block keeps of each token: in and between its parts 11 C, and of each
    # head's exponentials half of T. With remat "attention" it keeps no exponentials,
    # with "block" only its input, and one block is whole at a time.
    per_token = 11 * channels
    scores = shape.n_head * sequence_length / 2
    kept = {
        "none": shape.n_layer * (per_token + scores),
        "attention": shape.n_layer * per_token + scores,
        "block": shape.n_layer * channels + per_token + scores,
    }
    tokens = settings.microbatch_size * sequence_length
    width = 2 if settings.precision == "bfloat16" else 4
    activations = tokens * kept.get(settings.remat, kept["none"]) * width
    # Logits and their gradients in float32, and these rounded and scaled.
    logits = 3 * min(tokens, cross_entropy.CHUNK_TOKENS) * vocabulary * 4
    a_replica = {
        "weights": weights,
        "optimizer state": moments * weights,
        "gradients": gradients,
        "activations": int(activations),
        "logits": logits,
    }
    return {
        **{name: num_replicas * size for name, size in a_replica.items()},
        "copy to save": weights * (1 + moments),
        "program": _PROGRAM_BYTES,
    }


def report(
    shape: PretrainedConfig, config: Config, sequence_length: int, num_replicas: int
) -> None:
    """Logs the estimate; warns where it exceeds the memory that is available.

    Args: as of `estimate`.
    """
    parts = estimate(shape, config, sequence_length, num_replicas)
    needed = sum(parts.values())
    logging.info(
        "training takes about %s of memory: %s",
        _gib(needed),
        ", ".join(f"{name} {_gib(size)}" for name, size in parts.items()),
    )
    available = _available_bytes()
    if available is not None and needed > available:
        logging.warning(
            "Training takes about %s of memory; %s are available, and the run may be "
            "killed. Use a smaller model or `training.microbatch_size`, "
            "`training.remat=block`, fewer devices, or optimizer.name=adafactor.",
            _gib(needed),
            _gib(available),
        )


def _available_bytes() -> int | None:
    """Returns what programs can take of the machine's memory; None: not known."""
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


def _gib(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"
