"""Checks a config: the choices and ranges of fields, and the rules between fields.

All problems are collected and raised as one error that says what to change.
"""

import math
from collections.abc import Iterator
from typing import Any, Optional

from configs import tpu
from configs.errors import UserError
from configs.schema import Config, LoraConfig, flatten

# Field -> allowed values.
CHOICES: dict[str, tuple[str, ...]] = {
    "data.document": ("file", "line", "paragraph"),
    "data.detokenizer": ("none", "wikitext"),
    "data.encoding_errors": ("stop", "replace", "skip"),
    "data.null_text": ("stop", "skip"),
    "data.mode": ("packed", "document", "labelled", "completion"),
    "data.completions_per_record": ("one", "several"),
    "data.align": ("none", "document"),
    "data.attention": ("causal", "document"),
    "data.padding_side": ("right", "left"),
    "data.tokenizer_model": ("bpe", "unigram", "wordpiece"),
    "model.vocabulary": ("resize", "transplant"),
    "optimizer.name": ("adafactor", "adamw", "muon", "sgd"),
    "optimizer.schedule": (
        "linear",
        "cosine",
        "inverse_sqrt",
        "constant",
        "wsd",
        "relative_step",
    ),
    "training.class_weights": ("none", "balanced"),
    "training.precision": ("float32", "bfloat16"),
    "training.remat": ("none", "attention", "block", "auto"),
    "hardware.tpu_type": ("", *tpu.names()),
    "hardware.on_mismatch": ("stop", "adapt"),
}
# Field -> smallest and largest allowed value; None: no limit.
RANGES: dict[str, tuple[float, Optional[float]]] = {
    "data.sequence_length": (2, None),
    "data.vocab_size": (257, None),
    "data.tokenizer_sample_mebibytes": (1, None),
    "data.stride": (0, None),
    "data.num_shards": (0, 99_999),
    "data.shard_mebibytes": (1, None),
    "data.seed": (0, 2**31 - 1),
    "data.validation_fraction": (0, 0.9),
    "model.n_layer": (1, None),
    "model.n_head": (1, None),
    "model.n_embd": (1, None),
    "model.n_positions": (2, None),
    "model.embedding_size": (1, None),
    "model.lora.rank": (0, None),
    "model.lora.dropout": (0, 0.9),
    "optimizer.learning_rate": (0, None),
    "optimizer.final_learning_rate": (0, None),
    "optimizer.warmup_fraction": (0, 1),
    "optimizer.warmup_steps": (0, None),
    "optimizer.decay_fraction": (0, 1),
    "optimizer.beta_1": (0, 0.9999),
    "optimizer.beta_2": (0, 0.99999),
    "optimizer.weight_decay": (0, None),
    "optimizer.clip_norm": (0, None),
    "training.global_batch_size": (1, None),
    "training.microbatch_size": (1, None),
    "training.num_epochs": (0, None),
    "training.num_steps": (0, None),
    "training.seed": (0, 2**31 - 1),
    "training.dropout": (0, 0.9),
    "training.evaluation_interval": (0, None),
    "training.checkpoint_interval": (0, None),
    "training.max_skipped_in_a_row": (1, None),
    "training.keep_last": (1, None),
    "training.keep_every": (0, None),
    "training.early_stopping_patience": (0, None),
    "training.steps_per_execution": (1, None),
    "tracking.sample_interval": (0, None),
    "tracking.sample_tokens": (1, None),
}


def validate(config: Config) -> None:
    """Checks every field and every rule between fields.

    Raises:
      UserError: lists all problems and what to change.
    """
    problems = [
        *_field_problems(flatten(config)),
        *_data_problems(config),
        *_model_problems(config),
        *_lora_problems(config),
        *_training_problems(config),
    ]
    if problems:
        raise UserError("\n".join(problems))


def _field_problems(values: dict[str, Any]) -> Iterator[str]:
    for name, choices in CHOICES.items():
        if values[name] not in choices:
            yield (
                f"`{name}` must be one of {', '.join(choices)}. "
                f"Received: {values[name]!r}."
            )
    for name, (low, high) in RANGES.items():
        value = values[name]
        if value is None:
            continue
        if not (low <= value and (high is None or value <= high)):
            bound = f"at least {low}" if high is None else f"from {low} to {high}"
            yield f"`{name}` must be {bound}. Received: {value}."


def _data_problems(config: Config) -> Iterator[str]:
    data = config.data
    if data.stride and (data.mode != "packed" or data.stride > data.sequence_length):
        yield (
            "`data.stride` must be at most `data.sequence_length`, and only packed "
            f"data has one. Received: stride {data.stride}, sequence length "
            f"{data.sequence_length}, mode {data.mode}. Set it to 0."
        )
    if data.align == "document" and (data.mode != "packed" or data.stride):
        yield (
            "`data.align` must be none, unless `data.mode` is packed and `data.stride` "
            "is 0: records of other modes begin at a document anyway, and such records "
            f"do not overlap. Received: document with mode {data.mode} and stride "
            f"{data.stride}. Set it to none."
        )
    is_free = data.detokenizer == "none" and not (data.start_token or data.end_token)
    is_free &= data.mode == "completion" and data.tokenizer != "train"
    if data.messages_field and not is_free:
        yield (
            "`data.messages_field` must be empty, unless `data.mode` is completion and "
            "the tokenizer's chat template alone makes the text. Received: mode "
            f"{data.mode}, tokenizer {data.tokenizer}, detokenizer {data.detokenizer}, "
            f"tokens {data.start_token!r} and {data.end_token!r} around it. Set the "
            "mode, leave the last three at their defaults, and name a tokenizer with a "
            "template."
        )
    if data.padding_side == "left" and data.mode == "packed":
        yield (
            "`data.padding_side` must be right if `data.mode` is packed: padding is at "
            "the end of a record. Received: left. Set it to right."
        )
    architecture, task = config.model.architecture, config.training.task
    knows_documents = data.mode == "packed" and data.end_token != ""
    knows_documents &= task == "causal_lm" and architecture != "xlnet"
    if data.attention == "document" and not knows_documents:
        yield (
            "`data.attention` must be causal, unless `data.mode` is packed, documents "
            "have an end token, `training.task` is causal_lm, and `model.architecture` "
            f"is not xlnet. Received: document with mode {data.mode}, end token "
            f"{data.end_token!r}, {task} and {architecture}. Set it to causal."
        )


def _model_problems(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    if not model.initial_checkpoint:
        if model.vocabulary == "transplant":
            yield (
                "`model.vocabulary` must be resize without a checkpoint, whose rows "
                "it takes. Received: transplant. Set `model.initial_checkpoint`."
            )
        if data.sequence_length > model.n_positions:
            yield (
                "`data.sequence_length` must not exceed `model.n_positions`. Received: "
                f"{data.sequence_length} > {model.n_positions}. Lower the first or "
                "raise the second."
            )
        if model.n_head > 0 and model.n_embd % model.n_head:
            yield (
                "`model.n_embd` must be a multiple of `model.n_head`. Received: "
                f"{model.n_embd} and {model.n_head}. Change either."
            )


def _lora_problems(config: Config) -> Iterator[str]:
    lora = config.model.lora
    if not 0 < lora.alpha < math.inf:
        yield f"`model.lora.alpha` must be positive. Received: {lora.alpha}."
    if not lora.rank and lora != LoraConfig():
        yield (
            "`model.lora.rank` must be positive if other fields of `model.lora` are "
            "set. Received: 0, which means no LoRA. Set it, such as to 8."
        )
    if lora.rank and config.training.trainable:
        yield (
            "`training.trainable` must be empty with LoRA, which trains its adapters "
            f"alone. Received: {config.training.trainable!r} and `model.lora.rank` "
            f"{lora.rank}. Use `model.lora.targets`, or set the rank to 0."
        )


def _training_problems(config: Config) -> Iterator[str]:
    training = config.training
    global_batch_size, microbatch_size = (
        training.global_batch_size,
        training.microbatch_size,
    )
    if microbatch_size > 0 and global_batch_size % microbatch_size:
        lower = microbatch_size * max(global_batch_size // microbatch_size, 1)
        yield (
            "`training.global_batch_size` must be a multiple of "
            f"`training.microbatch_size`. Received: {global_batch_size} and "
            f"{microbatch_size}. Use {lower} or {lower + microbatch_size}."
        )
    if training.num_epochs <= 0 and training.num_steps <= 0:
        yield (
            "`training.num_epochs` or `training.num_steps` must be positive. "
            f"Received: {training.num_epochs} and {training.num_steps}. Set one."
        )
    if 0 < training.num_steps <= config.optimizer.warmup_steps:
        yield (
            "`optimizer.warmup_steps` must be less than `training.num_steps`. "
            f"Received: {config.optimizer.warmup_steps} and {training.num_steps}. "
            "Lower the first or raise the second."
        )
    is_classifier = training.task == "classification"
    if training.class_weights != "none" and not is_classifier:
        yield (
            "`training.class_weights` must be none, unless `training.task` is "
            f"classification. Received: {training.class_weights!r}. Leave it out."
        )
    if config.tracking.sample_interval and is_classifier:
        yield (
            "`tracking.sample_interval` must be 0 if `training.task` is "
            "classification: a classifier writes no text. Received: "
            f"{config.tracking.sample_interval}. Set it to 0."
        )
    for name, interval in (
        ("training.evaluation_interval", training.evaluation_interval),
        ("training.checkpoint_interval", training.checkpoint_interval),
        ("tracking.sample_interval", config.tracking.sample_interval),
    ):
        if training.steps_per_execution > 0 and interval % training.steps_per_execution:
            yield (
                f"`{name}` must be a multiple of "
                f"`training.steps_per_execution`. Received: {interval} and "
                f"{training.steps_per_execution}. Change either."
            )
