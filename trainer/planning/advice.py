"""Advises how to train on a dataset: each setting with its reason and its source."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from configs import gpt2_large, gpt2_medium, gpt2_small, schema, tpu
from configs.schema import Config, ModelConfig
from tfrecords.manifest import Manifest
from trainer.planning import planner

_STUDY = "bkkaggle/lm-training-research-project"
_LORA = "Hu et al., 2021, table 11"
_NANOGPT = "karpathy/nanoGPT, config/train_gpt2.py"
_CHINCHILLA = "Hoffmann et al., 2022, table 3"
_REPETITION = "Muennighoff et al., 2023"

# Name -> parameters, job. XL is left out: see `_fine_tune`.
_CHECKPOINTS = {
    "gpt2": (124_439_808, gpt2_small),
    "gpt2-medium": (354_823_168, gpt2_medium),
    "gpt2-large": (774_030_080, gpt2_large),
}
# Layers, heads and channels from random weights.
_SHAPES = ((2, 2, 128), (4, 4, 256), (6, 6, 384), (8, 8, 512), (12, 12, 768))
_GPT2_VOCABULARY = 50257
# Tokens for each parameter: below the first, a checkpoint learns the text by heart, as
# `train` warns; the second is best for the compute.
_FEWEST_PER_PARAMETER, _BEST_PER_PARAMETER = 0.001, 20
# Repeated so often, text is about as good as new text.
_USEFUL_EPOCHS = 4
# Of the study: tokens of its corpus, and of a step, at its learning rate.
_STUDY_TOKENS, _STUDY_STEP, _STUDY_RATE = 2_300_000, 8 * 1024, 5e-5
_LORA_RATE = 2e-4  # for as many sequences in a step
# At this, the rate of full training is 4e-4; nanoGPT's 6e-4 is the highest published.
_LARGEST_STEP = 64 * 1024
_LARGEST_SCRATCH_STEP = 480 * 1024
# What a replica holds at once, at the most.
_MICROBATCH_TOKENS = 8 * 1024


@dataclasses.dataclass(frozen=True)
class Line:
    """One setting of the advice."""

    setting: str
    value: str
    reason: str
    source: str


def advise(
    manifest: Manifest, num_replicas: int, largest: str = "gpt2-large"
) -> tuple[Config, list[Line]]:
    """Returns a config for a dataset, and why each setting is what it is.

    Args:
      manifest: of the dataset.
      num_replicas: that share a step.
      largest: checkpoint that may be advised.
    """
    num_tokens = manifest.split("train").tokens
    config = gpt2_small.get_config()
    has_own_tokenizer = manifest.vocabulary_size - len(manifest.added_tokens) != (
        _GPT2_VOCABULARY
    )
    parameters = _CHECKPOINTS["gpt2"][0]
    is_large = num_tokens >= _BEST_PER_PARAMETER * parameters
    config.data.sequence_length = manifest.sequence_length
    if has_own_tokenizer or is_large:
        lines = list(_from_scratch(config, manifest, has_own_tokenizer))
    else:
        lines = list(_fine_tune(config, num_tokens, largest))
    lines += _batch(config, num_tokens, num_replicas)
    # An epoch is evaluated about ten times.
    num_steps = num_tokens // (
        config.training.global_batch_size * manifest.sequence_length
    )
    interval = max(num_steps // 100, 1) * 10
    config.training.evaluation_interval = config.training.checkpoint_interval = interval
    return config, lines


def _checkpoint(num_tokens: int, largest: str) -> str:
    """Returns the largest checkpoint for which there are tokens enough."""
    names = list(_CHECKPOINTS)
    fitting = [
        name
        for name in names[: names.index(largest) + 1]
        if num_tokens >= _FEWEST_PER_PARAMETER * _CHECKPOINTS[name][0]
    ]
    return fitting[-1] if fitting else names[0]


def _fine_tune(config: Config, num_tokens: int, largest: str) -> Iterator[Line]:
    name = _checkpoint(num_tokens, largest)
    job = _CHECKPOINTS[name][1].get_config()
    config.data.tokenizer, config.model = job.data.tokenizer, job.model
    config.training.remat = job.training.remat
    yield Line(
        "model.initial_checkpoint",
        name,
        f"the largest with {_FEWEST_PER_PARAMETER:g} tokens a parameter that fits. "
        "Fine-tuned on 2.3 M tokens, small, medium, large and XL reach a loss of 2.87, "
        "2.63, 2.51 and 2.51: XL costs twice as much as large and gains nothing",
        _STUDY,
    )
    training = config.training
    training.num_epochs = min(math.ceil(_STUDY_TOKENS / num_tokens), 10)
    if training.num_epochs == 1:
        reason = f"{num_tokens:,} tokens are enough for the first epoch to do the most"
    else:
        training.early_stopping_patience = 3
        reason = (
            f"as many tokens as one epoch of 2.3 M, at most 10 epochs of "
            f"{num_tokens:,}; `early_stopping_patience` ends them at the lowest "
            "validation loss"
        )
    yield Line("training.num_epochs", f"{training.num_epochs:g}", reason, _STUDY)
    if num_tokens < _FEWEST_PER_PARAMETER * _CHECKPOINTS["gpt2-large"][0]:
        config.model.lora.rank = 4
        config.optimizer = schema.OptimizerConfig(name="adamw", weight_decay=0.01)
        yield Line(
            "model.lora.rank",
            "4",
            f"{num_tokens:,} tokens are learnt by heart by a model all of whose "
            "weights are trained; adapters have a thousandth of them",
            _LORA,
        )
    else:
        yield Line(
            "model.lora.rank",
            "0",
            "there is text enough to train all weights, and Adafactor's state is small",
            _STUDY,
        )
    yield Line(
        "training.dropout",
        f"{training.dropout:g}",
        "the rate that GPT-2 was made with; a small corpus is seen more than once",
        "Radford et al., 2018, section 4.1",
    )


def _shape(manifest: Manifest) -> tuple[tuple[int, int, int], int]:
    """Returns the largest shape for which there are tokens enough; its parameters."""
    tokens = _USEFUL_EPOCHS * manifest.split("train").tokens
    counts = {
        shape: 12 * shape[0] * shape[2] ** 2
        + (manifest.vocabulary_size + manifest.sequence_length) * shape[2]
        for shape in _SHAPES
    }
    fitting = (s for s in _SHAPES if counts[s] <= tokens / _BEST_PER_PARAMETER)
    shape = max(fitting, default=_SHAPES[0])
    return shape, counts[shape]


def _from_scratch(
    config: Config, manifest: Manifest, has_own_tokenizer: bool
) -> Iterator[Line]:
    num_tokens = manifest.split("train").tokens
    (layers, heads, channels), parameters = _shape(manifest)
    config.model = ModelConfig(
        n_layer=layers,
        n_head=heads,
        n_embd=channels,
        n_positions=manifest.sequence_length,
    )
    why = (
        "the dataset has a tokenizer of its own"
        if has_own_tokenizer
        else f"{num_tokens:,} tokens are {_BEST_PER_PARAMETER} a parameter of `gpt2`"
    )
    yield Line(
        "model.initial_checkpoint",
        "none",
        f"{why}: train from random weights",
        _CHINCHILLA,
    )
    yield Line(
        "model.n_layer, n_head, n_embd",
        f"{layers}, {heads}, {channels}",
        f"{parameters / 1e6:.3g} M parameters: the largest with "
        f"{_BEST_PER_PARAMETER} tokens each, in {_USEFUL_EPOCHS} epochs",
        _CHINCHILLA,
    )
    enough = num_tokens >= _BEST_PER_PARAMETER * parameters
    config.training.num_epochs = 1 if enough else _USEFUL_EPOCHS
    yield Line(
        "training.num_epochs",
        f"{config.training.num_epochs:g}",
        "each token once: there are enough"
        if enough
        else f"text that is repeated {_USEFUL_EPOCHS} times is about as good as new",
        _CHINCHILLA if enough else _REPETITION,
    )
    config.training.dropout = 0.0 if enough else 0.1
    yield Line(
        "training.dropout",
        f"{config.training.dropout:g}",
        "nothing is seen twice" if enough else "the text is seen more than once",
        _NANOGPT,
    )
    config.training.remat = "auto"
    config.optimizer = schema.OptimizerConfig(
        name="adamw", beta_2=0.95, weight_decay=0.1, clip_norm=1.0, schedule="cosine"
    )


def _batch(config: Config, num_tokens: int, num_replicas: int) -> Iterator[Line]:
    """Yields batch size and learning rate; makes the split over the replicas."""
    length, training = config.data.sequence_length, config.training
    from_scratch = not config.model.initial_checkpoint
    least = 1000 if from_scratch else _STUDY_TOKENS // _STUDY_STEP
    most = _LARGEST_SCRATCH_STEP if from_scratch else _LARGEST_STEP
    step = min(num_tokens * training.num_epochs / least, most)
    size = max(int(step / length / num_replicas), 1) * num_replicas
    training.global_batch_size = size
    at_once = size // num_replicas
    fitting = max(_MICROBATCH_TOKENS // length, 1)
    training.microbatch_size = max(
        part for part in range(1, fitting + 1) if at_once % part == 0
    )
    yield Line(
        "training.global_batch_size",
        str(size),
        f"{size * length:,} tokens a step: {least:,} steps or more where there is text "
        f"for them, the same on each of {num_replicas} replicas, {most:,} at the most",
        _NANOGPT if from_scratch else _STUDY,
    )
    if from_scratch:
        rate, reason, source = 6e-4, "of GPT-2 small from random weights", _NANOGPT
    else:
        is_lora = bool(config.model.lora.rank)
        base, source = (_LORA_RATE, _LORA) if is_lora else (_STUDY_RATE, _STUDY)
        rate = base * size * length / _STUDY_STEP
        reason = f"{base:g} for 8 x 1,024 tokens: rate / batch size is kept"
    config.optimizer.learning_rate = float(f"{rate:.2g}")
    yield Line(
        "optimizer.learning_rate", f"{config.optimizer.learning_rate:g}", reason, source
    )


def advise_for_tpu(
    manifest: Manifest, tpu_type: tpu.TpuType
) -> tuple[Config, list[Line], dict[str, Any]]:
    """Returns advice for the largest checkpoint that fits a TPU, and its plan.

    The plan is of a model of the checkpoint's shape: nothing is downloaded.

    Raises:
      UserError: the TPU's compiler is not installed.
    """
    largest = list(_CHECKPOINTS)
    while True:
        config, lines = advise(manifest, tpu_type.num_replicas, largest[-1])
        shape = dataclasses.replace(config.model, initial_checkpoint="")
        planned = dataclasses.replace(config, model=shape)
        plan = planner.make(planned, tpu_type, manifest, find_max=False)
        name = config.model.initial_checkpoint
        if plan["fits"] or name in ("", "gpt2"):
            return config, lines, plan
        largest = largest[: largest.index(name)]


def flags(config: Config) -> list[str]:
    """Returns the flags that make the advised config of a shipped one."""
    _, job = _CHECKPOINTS.get(config.model.initial_checkpoint, _CHECKPOINTS["gpt2"])
    base = schema.flatten(job.get_config())
    changes = [
        f"--config.{name}={value}"
        for name, value in schema.flatten(config).items()
        if value != base[name] and not name.startswith("data.")
    ]
    return [f"--config={job.__name__.replace('.', '/')}.py", *changes]
