"""Defines the config of a run: one dataclass per concern.

Each job file in this folder returns one `Config`. `configs/cli.py` turns its fields
into flags (`--config.optimizer.learning_rate=3e-4`) and `configs/validation.py` checks
them. Nothing here imports TensorFlow, so a config loads in milliseconds.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, Optional

from configs.errors import UserError


@dataclasses.dataclass
class DataConfig:
    """Selects the text and how it becomes records."""

    # Files, folders or globs, on a disk or in a bucket (gs://…), separated by commas
    # (a path that exists may hold commas) or line ends;
    # `hf:NAME[:CONFIG]/SPLIT`; `tfds:NAME[:VERSION]/SPLIT`; or `builtin:python_docs`.
    # Formats by file extension: .jsonl, .csv and .tsv, .parquet, .arrow; all others are
    # plain text. Text formats may be compressed (.gz, .bz2, .zst).
    input: str = ""
    # Source of the validation split. Empty: held-out documents of `input`.
    validation_input: str = ""
    # Fraction of the documents to hold out, selected by a hash of each document.
    # None: 1 % if the input is 100 MB or larger, else 10 %. 0: no validation split.
    validation_fraction: Optional[float] = None
    # What a document is in plain text: a "file", a "line", or a "paragraph" (separated
    # by blank lines). In other formats each line or row is one document.
    document: str = "file"
    # Field or column of the text, and of a labelled document's label: an integer or a
    # name.
    text_field: str = "text"
    label_field: str = "label"
    # Fields or columns of completion data: what is there already, and what is learnt.
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    # Completion data: field of a conversation, a list of {"role": …, "content": …}. The
    # tokenizer's chat template makes a text of it, of which the assistant's turns are
    # learnt. Empty: rows have a prompt and a completion.
    messages_field: str = ""
    # Completion data: whether a record holds "one" example, or "several", as many as
    # fit.
    completions_per_record: str = "one"
    # For rows whose text is null, or lacks its field in JSONL: "stop", or "skip" them.
    # The manifest counts those that are skipped.
    null_text: str = "stop"
    # Folder of tensorflow-datasets. Empty: its default.
    tfds_data_dir: str = ""
    # For bytes that are not UTF-8: "stop", "replace" them with U+FFFD, or "skip" the
    # document. Byte order marks are removed; NUL, and CRLF inside a document, are
    # kept. The manifest counts each case.
    encoding_errors: str = "stop"
    # Drop documents that equal an earlier one byte for byte.
    deduplicate: bool = False
    # "wikitext" reverts WikiText's tokenization (" @-@ " becomes "-").
    detokenizer: str = "none"
    # A Hugging Face name, a folder, or "train": a tokenizer of `vocab_size` tokens
    # trained on the training documents.
    tokenizer: str = "gpt2"
    # Family of a new tokenizer: "bpe" (byte-level, loses nothing), "unigram" (as
    # SentencePiece's) or "wordpiece" (as BERT's).
    tokenizer_model: str = "bpe"
    vocab_size: int = 50257
    # Maximum amount of text that a new tokenizer is trained on.
    tokenizer_sample_mebibytes: int = 512
    # Go on where more than 5 % of the tokens are unknown, or of the documents do not
    # decode to themselves. The manifest counts both.
    allow_lossy_tokenizer: bool = False
    # True: "<|endoftext|>" in the text becomes the special token. False: it is text.
    allow_special_tokens: bool = False
    # Special tokens before and after each document; unknown ones are added to the
    # tokenizer. Empty: no token. `end_token` None: the tokenizer's end-of-text token.
    start_token: str = ""
    end_token: Optional[str] = None
    # "packed": one stream of all tokens, cut into records of `sequence_length`.
    # "document": each record is one document, truncated or padded. "labelled": the
    # same, with a label. "completion": prompts and completions, of which only the
    # latter are learnt.
    mode: str = "packed"
    sequence_length: int = 1024
    # Packed training data: tokens from the start of one record to the start of the
    # next. Records overlap if it is less than `sequence_length`. 0: no overlap.
    stride: int = 0
    # Packed data: "none" fills each record. "document": a document that does not fit in
    # the rest of a record begins the next one, and the rest is padding. A document
    # longer than a record fills several.
    align: str = "none"
    # Packed data: what a token sees of its record. "causal": all tokens before it.
    # "document": those of its own document, whose positions begin at 0. The records
    # are the same.
    attention: str = "causal"
    # Where records that are not packed are padded: "right" or "left".
    padding_side: str = "right"
    # Seed of the order of training records on disk.
    seed: int = 0
    # Shards per split; each host of a pod needs at least one. 0: one per
    # `shard_mebibytes`, at least 8.
    num_shards: int = 0
    shard_mebibytes: int = 128

    @property
    def is_stream(self) -> bool:
        """Returns whether records are windows of one stream of tokens."""
        return self.mode == "packed" and self.align == "none"


@dataclasses.dataclass
class LoraConfig:
    """Trains low-rank matrices beside frozen projections (Hu et al., 2021).

    Source of the defaults: table 11 of https://arxiv.org/abs/2106.09685, GPT-2, and
    the commands of its authors: alpha 32, dropout 0.1, on queries and values.
    """

    # Columns of an adapter's matrices. The authors take 4. 0: no LoRA.
    rank: int = 0
    # What an adapter adds is scaled by alpha / rank.
    alpha: float = 32.0
    # Of an adapter's inputs.
    dropout: float = 0.1
    # Patterns, as of `training.trainable`, that select among the projections c_attn,
    # c_proj and c_fc. "attn.c_proj" is the one of the attention.
    targets: str = "c_attn"


@dataclasses.dataclass
class ModelConfig:
    """Defines the network. A checkpoint's own shape overrides the fields `n_…`."""

    architecture: str = "gpt2"
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    # Columns of algpt2's token embedding.
    embedding_size: int = 128
    # Hugging Face folder or name of the initial weights. Empty: random weights.
    initial_checkpoint: str = ""
    # How the initial weights take tokens that they lack. "resize": the dataset has the
    # checkpoint's tokenizer, and tokens added to it start as the mean of all rows.
    # "transplant": it has another tokenizer, and a token's row is the mean of the rows
    # of the pieces that the checkpoint's tokenizer cuts its text into.
    vocabulary: str = "resize"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass
class OptimizerConfig:
    """Selects the update rule and the learning rate schedule."""

    name: str = "adafactor"
    learning_rate: float = 5e-5
    # After the warmup: "linear" or "cosine" decay to `final_learning_rate` at the last
    # step, "inverse_sqrt" (learning_rate x sqrt(warmup_steps / step)), or "constant".
    # "wsd" (warmup, stable, decay) keeps the rate, and goes to `final_learning_rate` by
    # 1 - sqrt over the last `decay_fraction` of all steps.
    # "relative_step" has no warmup: min(learning_rate, 1 / sqrt(step)); Adafactor's
    # paper uses a learning_rate of 1e-2.
    schedule: str = "linear"
    final_learning_rate: float = 0.0
    # Linear warmup: `warmup_steps` or, if that is 0, this fraction of all steps.
    warmup_fraction: float = 0.1
    warmup_steps: int = 0
    # "wsd" only: the part of all steps that lowers the rate, after the warmup at the
    # earliest. Hägele et al. (2024) find 0.1 to 0.2 enough.
    decay_fraction: float = 0.2
    # Decay of the first moment. None: 0 (no momentum) for adafactor and sgd, 0.9 for
    # adamw, 0.95 for muon, whose AdamW for embeddings and vectors has 0.9.
    beta_1: Optional[float] = None
    # AdamW, also of muon: decay of the second moment. Adafactor's is 1 - step^-0.8.
    beta_2: float = 0.999
    # Decoupled weight decay; not applied to biases and layer norms.
    weight_decay: float = 0.0
    # Maximum global norm of the gradient. 0: no clipping.
    clip_norm: float = 0.0
    # Adafactor only: scale each update by the RMS of its parameter.
    parameter_scale: bool = False


@dataclasses.dataclass
class TrainingConfig:
    """Sets batch sizes, length and numerics. A step is one optimizer update."""

    # What the model learns: "causal_lm" predicts each token from those before it,
    # "classification" the label of a text, of data in mode "labelled".
    task: str = "causal_lm"
    # Classification: "balanced" weighs a text by n / (labels x n_label), so that rare
    # labels count as much as frequent ones. "none": all texts weigh the same.
    class_weights: str = "none"
    # Patterns of the weights that are trained, separated by commas; the others are
    # frozen. "h.1*" and "ln_?" match whole parts of `transformer.h.11.ln_1.weight`;
    # "!wte" leaves out what it matches. Empty: all.
    trainable: str = ""
    # global_batch_size = microbatch_size x num_replicas x accumulation_steps
    global_batch_size: int = 8
    # Sequences that a replica processes at once; gradients of the rest accumulate.
    microbatch_size: int = 1
    num_epochs: float = 1.0
    # Overrides num_epochs unless it is 0.
    num_steps: int = 0
    seed: int = 0
    # "bfloat16": matrix products in bfloat16; weights, optimizer and loss in float32.
    # TPUs round the inputs of matrix products to bfloat16 with either setting, and
    # accumulate in float32.
    precision: str = "bfloat16"
    # Rematerialization, what the backward pass recomputes instead of storing: "none"
    # (no matrix products), "attention" (scores and probabilities), "block" (whole
    # blocks). "auto": the first of these that fits by the compiler (`make plan`).
    remat: str = "none"
    dropout: float = 0.1
    # A step whose loss or gradient is not finite is skipped: it changes no weight. The
    # run stops after this many skipped steps in a row.
    max_skipped_in_a_row: int = 10
    # Steps between two evaluations (0: only before the first and after the last step).
    evaluation_interval: int = 0
    # Steps between two checkpoints (0: only after the last step).
    checkpoint_interval: int = 0
    # Checkpoints to keep: the last `keep_last`, those at multiples of `keep_every`
    # steps (0: none), and always the one with the lowest validation loss.
    keep_last: int = 2
    keep_every: int = 0
    # Stop after this many evaluations without a lower validation loss. 0: never.
    early_stopping_patience: int = 0
    # Steps that the device runs without returning to the host; also the interval of
    # metrics. All other intervals must be multiples of it.
    steps_per_execution: int = 10


@dataclasses.dataclass
class HardwareConfig:
    """Names the hardware that the run expects."""

    # A TPU type such as "v3-8". Empty: any hardware.
    tpu_type: str = ""
    # If the TPU is of another type: "stop", or "adapt": keep the global batch size and
    # choose a microbatch size that fits the TPU's memory by the compiler's plan.
    on_mismatch: str = "stop"


@dataclasses.dataclass
class TrackingConfig:
    """Selects what a run records besides its metrics."""

    # Steps between two text samples (0: none). Each continues `sample_prompt` by
    # `sample_tokens` tokens. Empty prompt: the start of a document.
    sample_interval: int = 0
    sample_tokens: int = 50
    sample_prompt: str = ""
    # Stands before the prompt of each sample, and by default of `generate`; is not
    # shown. XLNet continues a short prompt badly: give it a text in the prompt's
    # language.
    sample_padding_text: str = ""
    # Write histograms of the trained weights at each evaluation interval and after the
    # last step.
    histograms: bool = False
    # Log to Weights & Biases. With WANDB_MODE=offline it writes a folder and sends
    # nothing.
    wandb: bool = False
    wandb_project: str = "gpt2-tpu"


@dataclasses.dataclass
class Config:
    """Configures a whole run.

    `data_pipeline` reads `data`, and `model.n_positions`, which a new tokenizer stores
    as its maximum length. `trainer` reads the rest, and `data.attention`.
    """

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    tracking: TrackingConfig = dataclasses.field(default_factory=TrackingConfig)


def flatten(config: Config) -> dict[str, Any]:
    """Returns {"data.input": …, "model.lora.rank": …}, in the order of the fields."""
    return dict(leaves(dataclasses.asdict(config)))


def is_of_dataset(field: str) -> bool:
    """Returns whether a dataset's fingerprint stands for a field, such as "data.mode".

    `data_pipeline` reads all of `data` but `data.attention`.
    """
    return field.startswith("data.") and field != "data.attention"


def leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields ("data.input", …) and so on of nested dicts such as a stored config."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def from_dict(values: dict[str, dict[str, Any]]) -> Config:
    """Rebuilds a Config from the result of `dataclasses.asdict`.

    Raises:
      UserError: a field is missing or unknown to this version.
    """
    try:
        lora = LoraConfig(**values["model"].get("lora", {}))
        return Config(
            data=DataConfig(**values["data"]),
            model=ModelConfig(**{**values["model"], "lora": lora}),
            optimizer=OptimizerConfig(**values["optimizer"]),
            training=TrainingConfig(**values["training"]),
            hardware=HardwareConfig(**values["hardware"]),
            tracking=TrackingConfig(**values["tracking"]),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            "The stored config must be of this version of gpt2-tpu. Received: "
            f"{error}. Use the version that wrote it."
        ) from error
