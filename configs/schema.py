"""What a run is: dataclasses, one per concern, and the checks between their fields.

Nothing here imports TensorFlow: a config loads in milliseconds. Every file of this
folder builds one `Config`; `configs/cli.py` turns its fields into flags
(`--config.optimizer.learning_rate=3e-4`).
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

from configs import tpu
from configs.errors import UserError


@dataclasses.dataclass
class DataConfig:
    """What is tokenized, and how it becomes records."""

    # Files, folders or globs, here or in a bucket (gs://…), separated by commas;
    # `tfds:NAME[:VERSION]/SPLIT`; or `builtin:python_docs`. Files are .txt (or any
    # other name), .jsonl, .csv, .tsv, also with .gz, .bz2 or .zst, and .parquet.
    input: str = ""
    # Where the validation split comes from; empty: a share of `input`.
    validation_input: str = ""
    # Share of the documents held out, chosen by a hash of each document.
    # None: 1 % of an input of 100 MB or more, 10 % of a smaller one. 0: no split.
    validation_fraction: Optional[float] = None
    # In plain text a document is a whole "file", a "line", or a "paragraph" (what
    # stands between blank lines). Other formats have one document a line or row.
    document: str = "file"
    # The field or column that holds the text, and the one with a labelled document's
    # integer.
    text_field: str = "text"
    label_field: str = "label"
    # Where tensorflow-datasets keeps its datasets; empty: its own default.
    tfds_data_dir: str = ""
    # Bytes that are not UTF-8: "stop", "replace" them with U+FFFD, or "skip" the
    # document. A file's byte order mark is removed; NUL, and CRLF inside a document,
    # stay. The manifest counts all of it.
    encoding_errors: str = "stop"
    # Leave out documents that are the same, to the byte, as an earlier one.
    deduplicate: bool = False
    # "wikitext" undoes WikiText's tokenization (" @-@ " becomes "-").
    detokenizer: str = "none"
    # A Hugging Face name, a folder, or "train": a byte-level BPE of `vocab_size` ids
    # learnt from the training documents.
    tokenizer: str = "gpt2"
    vocab_size: int = 50257
    # How much text a new tokenizer learns from, at most.
    tokenizer_sample_mebibytes: int = 512
    # Whether "<|endoftext|>" inside the text is the special token. If not, it is text.
    allow_special_tokens: bool = False
    # Special tokens before and after each document; new ones extend the tokenizer.
    # `end_token` None: the tokenizer's end-of-text. Empty: none.
    start_token: str = ""
    end_token: Optional[str] = None
    # "packed": the corpus is one stream of tokens, cut every `sequence_length`.
    # "document": a record is a document, truncated or padded; "labelled": and has an
    # integer label.
    mode: str = "packed"
    sequence_length: int = 1024
    # Packed: tokens from the start of a training record to that of the next; less than
    # `sequence_length`, and records overlap. 0: every token once.
    stride: int = 0
    # Of documents: "right" or "left".
    padding_side: str = "right"
    # Order of the training records on disk.
    seed: int = 0
    # Shards of a split; 0: one per `shard_mebibytes`, at least 8. A pod needs one per
    # host.
    num_shards: int = 0
    shard_mebibytes: int = 128


@dataclasses.dataclass
class ModelConfig:
    """The network. The shape below is ignored when a checkpoint brings its own."""

    architecture: str = "gpt2"
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    # A Hugging Face folder or name to start from; empty: random weights.
    initial_checkpoint: str = ""


@dataclasses.dataclass
class OptimizerConfig:
    """The update rule and the learning rate over the run."""

    name: str = "adafactor"
    learning_rate: float = 5e-5
    # After the warmup: "linear" or "cosine" to `final_learning_rate` at the last step,
    # "inverse_sqrt" (peak x sqrt(warmup / step)), or "constant". "relative_step" has no
    # warmup: min(learning_rate, 1 / sqrt(step)), with 1e-2 in Adafactor's paper.
    schedule: str = "linear"
    final_learning_rate: float = 0.0
    # The warmup takes `warmup_steps`, or, where that is 0, this share of all steps.
    warmup_fraction: float = 0.1
    warmup_steps: int = 0
    # Momentum. None: off for adafactor and sgd, 0.9 for adamw.
    beta_1: Optional[float] = None
    # AdamW's second moment. Adafactor's decay is 1 - step^-0.8.
    beta_2: float = 0.999
    # Decoupled; biases and layer norms are spared.
    weight_decay: float = 0.0
    # Bound on the gradient's global norm; 0: none.
    clip_norm: float = 0.0
    # Adafactor: scale each update by the RMS of what it updates.
    parameter_scale: bool = False


@dataclasses.dataclass
class TrainingConfig:
    """Batches, length, numerics. A step is an optimizer update."""

    # What is learnt: "causal_lm" predicts each token from those before it.
    task: str = "causal_lm"
    # global_batch_size = microbatch_size x num_replicas x accumulation_steps
    global_batch_size: int = 8
    # Sequences that one replica holds at once. The rest is accumulated.
    microbatch_size: int = 1
    num_epochs: float = 1.0
    # Overrides num_epochs where it is not 0.
    num_steps: int = 0
    seed: int = 0
    # "bfloat16": matrix products in bfloat16; weights, optimizer, loss in float32. On a
    # TPU a product rounds its inputs to bfloat16 in any case, and adds up in float32.
    precision: str = "bfloat16"
    # What the gradient computes again instead of keeping it: "none" (nothing that costs
    # a matrix product), "attention" (scores and probabilities), "block" (whole blocks).
    # "auto": the first of these that the plan says fits; see `make plan`.
    remat: str = "none"
    dropout: float = 0.1
    # A step whose loss or gradient is no finite number changes nothing. After so many
    # of them in a row the run stops.
    max_skipped_in_a_row: int = 10
    # Steps between two evaluations (0: only before the first and after the last step).
    evaluation_interval: int = 0
    # Steps between two checkpoints (0: only after the last step).
    checkpoint_interval: int = 0
    # Which checkpoints stay: the newest, those of every so many steps (0: none), and
    # always the one with the lowest validation loss.
    keep_last: int = 2
    keep_every: int = 0
    # Stop after so many evaluations without a lower validation loss; 0: never.
    early_stopping_patience: int = 0
    # Steps that the device makes before the host looks again; also the interval of
    # the metrics. Divides all other intervals.
    steps_per_execution: int = 10


@dataclasses.dataclass
class HardwareConfig:
    """What the run expects to find."""

    # A TPU type such as "v3-8". Empty: whatever is there.
    tpu_type: str = ""
    # Where another one is found: "stop", or "adapt": the same global batch is split
    # anew, into microbatches that the plan of the TPU found allows.
    on_mismatch: str = "stop"


@dataclasses.dataclass
class TrackingConfig:
    """What is written of a run beside its metrics."""

    # Steps between two samples, each of `sample_tokens` after `sample_prompt` (empty:
    # the beginning of a text); 0: none.
    sample_interval: int = 0
    sample_tokens: int = 50
    sample_prompt: str = ""
    # The weights' histograms, after each `training.evaluation_interval` steps (0: none
    # but the last) and the last.
    histograms: bool = False
    # Weights & Biases, where WANDB_MODE=offline writes a folder and sends nothing.
    wandb: bool = False
    wandb_project: str = "gpt2-tpu"


@dataclasses.dataclass
class Config:
    """A whole run: `data_pipeline` reads `data`, `trainer` the rest.

    A new tokenizer also records `model.n_positions`.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


_CHOICES = {
    "data.document": ("file", "line", "paragraph"),
    "data.detokenizer": ("none", "wikitext"),
    "data.encoding_errors": ("stop", "replace", "skip"),
    "data.mode": ("packed", "document", "labelled"),
    "data.padding_side": ("right", "left"),
    "optimizer.name": ("adafactor", "adamw", "sgd"),
    "optimizer.schedule": (
        "linear",
        "cosine",
        "inverse_sqrt",
        "constant",
        "relative_step",
    ),
    "training.precision": ("float32", "bfloat16"),
    "training.remat": ("none", "attention", "block", "auto"),
    "hardware.tpu_type": ("", *tpu.names()),
    "hardware.on_mismatch": ("stop", "adapt"),
}
# Field -> smallest and largest value allowed; None is open.
_RANGES: dict[str, tuple[float, Optional[float]]] = {
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
    "optimizer.learning_rate": (0, None),
    "optimizer.final_learning_rate": (0, None),
    "optimizer.warmup_fraction": (0, 1),
    "optimizer.warmup_steps": (0, None),
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


def flatten(config: Config) -> dict[str, Any]:
    """Returns {"data.input": …, "model.n_layer": …} in the order of the fields."""
    return {
        f"{concern}.{field}": value
        for concern, fields in dataclasses.asdict(config).items()
        for field, value in fields.items()
    }


def from_dict(values: dict[str, dict[str, Any]]) -> Config:
    """Rebuilds what `dataclasses.asdict` made of a Config.

    Raises:
      UserError: a field is there that this version does not know.
    """
    try:
        return Config(
            data=DataConfig(**values["data"]),
            model=ModelConfig(**values["model"]),
            optimizer=OptimizerConfig(**values["optimizer"]),
            training=TrainingConfig(**values["training"]),
            hardware=HardwareConfig(**values["hardware"]),
            tracking=TrackingConfig(**values["tracking"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"The stored config is not of this version of gpt2-tpu: {error}."
        ) from error


def validate(config: Config) -> None:
    """Checks every field and every rule between fields.

    Raises:
      UserError: lists all problems at once, each with what to change.
    """
    problems = [
        *_field_problems(flatten(config)),
        *_data_problems(config),
        *_model_problems(config),
        *_training_problems(config),
    ]
    if problems:
        raise UserError("\n".join(problems))


def _field_problems(values: dict[str, Any]) -> Iterator[str]:
    for name, choices in _CHOICES.items():
        if values[name] not in choices:
            yield (
                f"`{name}` must be one of {', '.join(choices)}. "
                f"Received: {values[name]!r}."
            )
    for name, (low, high) in _RANGES.items():
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
    if data.padding_side == "left" and data.mode == "packed":
        yield (
            "`data.padding_side` must be right where `data.mode` is packed: only its "
            "last record is padded. Received: left."
        )


def _model_problems(config: Config) -> Iterator[str]:
    data, model = config.data, config.model
    if not model.initial_checkpoint:
        if data.sequence_length > model.n_positions:
            yield (
                "`data.sequence_length` must not exceed `model.n_positions`. Received: "
                f"{data.sequence_length} > {model.n_positions}. Lower the first or "
                "raise the second."
            )
        if model.n_head > 0 and model.n_embd % model.n_head:
            yield (
                "`model.n_embd` must be a multiple of `model.n_head`. Received: "
                f"{model.n_embd} and {model.n_head}."
            )


def _training_problems(config: Config) -> Iterator[str]:
    training = config.training
    if training.microbatch_size > 0:
        lower = training.global_batch_size // training.microbatch_size
        if training.global_batch_size % training.microbatch_size:
            nearest = training.microbatch_size * max(lower, 1)
            yield (
                "`training.global_batch_size` must be a multiple of "
                "`training.microbatch_size`. Received: "
                f"{training.global_batch_size} and {training.microbatch_size}. "
                f"Use {nearest} or {nearest + training.microbatch_size}."
            )
    if training.num_epochs <= 0 and training.num_steps <= 0:
        yield (
            "`training.num_epochs` or `training.num_steps` must be positive. "
            f"Received: {training.num_epochs} and {training.num_steps}."
        )
    if 0 < training.num_steps <= config.optimizer.warmup_steps:
        yield (
            "`optimizer.warmup_steps` must be less than `training.num_steps`. "
            f"Received: {config.optimizer.warmup_steps} and {training.num_steps}."
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
