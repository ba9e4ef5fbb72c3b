"""The trained model that the command line names: a run's or a Hugging Face one."""

import dataclasses
import os
import re

import tf_keras

from tfrecords import checksums, verify
from tfrecords import manifest as manifests
from tfrecords.manifest import TOKENIZER_FOLDER
from tfrecords.storage import files
from trainer.checkpoints import folders, run_checkpoints
from trainer.models import registry
from trainer.models.architecture import Architecture
from trainer.models.classifier import labels_of

# By OpenAI, and by Hugging Face.
_PUBLISHED = re.compile(
    r"(?:openai-community/)?(gpt2(?:-medium|-large|-xl)?)|(?:distilbert/)?(distilgpt2)"
)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model and what is known of it.

    Attributes:
      model: owns the weights.
      architecture: of the model.
      task: the value of `training.task`.
      tokenizer: where its tokenizer loads from.
      precision: that it was trained in.
      name: for people.
      step: of its run; None of a checkpoint.
      origin: of the weights: "as published", "of a folder", "from random weights", or
        "fine-tuned on 1 x 2,051,910 words": epochs and words.
      published_name: of the published checkpoint that the weights started from, such
        as "gpt2"; empty: none is known.
      start_token: that the documents of its dataset begin with; empty: none is known.
      dropout: that it was trained with; None: not known.
      padding_text: that stood before the prompt of its samples.
      sequence_length: tokens of its dataset's records; None: not known.
      attention: the value of `data.attention`.
    """

    model: tf_keras.Model
    architecture: Architecture
    task: str
    tokenizer: str
    precision: str
    name: str
    step: int | None
    origin: str
    published_name: str
    start_token: str = ""
    dropout: float | None = None
    padding_text: str = ""
    sequence_length: int | None = None
    attention: str = "causal"

    @property
    def protocol(self) -> dict[str, str]:
        """Returns what a result's protocol says of the model's computation."""
        # Results of older versions, which had no other attention, do not mention it.
        if self.attention == "causal":
            return {}
        return {"attention": self.attention}


def load(workdir: str, step: int, folder: str) -> Pretrained:
    """Loads a trained model, under the strategy's scope.

    Args:
      workdir: of a run; empty: load `folder`.
      step: of the run's checkpoint; 0: the newest.
      folder: a Hugging Face folder or name.

    Raises:
      UserError: the model does not load.
      DataError: the workdir has no checkpoint.
    """
    if folder:
        checkpoint_name = published_name(folder)
        architecture = registry.of_checkpoint(folder)
        checksums.verify_list(folder)
        model = architecture.load(folder)
        return Pretrained(
            model,
            architecture,
            "classification" if labels_of(model.config) else architecture.task,
            folder,
            precision="float32",
            name=folder,
            step=None,
            origin="as published" if checkpoint_name else "of a folder",
            published_name=checkpoint_name,
        )
    verify_run_files(workdir)
    loaded = run_checkpoints.load_model(workdir, step)
    record = loaded.record
    has_manifest = files.exists(files.join(workdir, manifests.FILE_NAME))
    manifest = manifests.load(workdir) if has_manifest else None
    return Pretrained(
        loaded.model,
        loaded.architecture,
        record.config["training"].get("task", "causal_lm"),
        files.join(workdir, TOKENIZER_FOLDER),
        precision=record.config["training"]["precision"],
        name=workdir,
        step=record.step,
        origin=_origin(workdir, record),
        published_name=published_name(record.config["model"]["initial_checkpoint"]),
        start_token=manifest.start_token if manifest else "",
        dropout=record.config["training"]["dropout"],
        padding_text=record.config["tracking"].get("sample_padding_text", ""),
        sequence_length=manifest.sequence_length if manifest else None,
        attention=record.config["data"].get("attention", "causal"),
    )


def verify_run_files(workdir: str) -> None:
    """Compares a run's tokenizer with its copy of the dataset's manifest.

    Raises:
      DataError: they differ, or the manifest is damaged.
    """
    if files.exists(files.join(workdir, manifests.FILE_NAME)):
        verify.verify_files(workdir, manifests.load(workdir), of_run=True)


def published_name(checkpoint: str) -> str:
    """Returns "gpt2" for "openai-community/gpt2"; nothing for a folder."""
    match = _PUBLISHED.fullmatch(checkpoint)
    if not match or os.path.exists(checkpoint):
        return ""
    return match[1] or match[2]


def _origin(workdir: str, record: folders.Record) -> str:
    if not record.config["model"]["initial_checkpoint"]:
        return "from random weights"
    if not files.exists(files.join(workdir, manifests.FILE_NAME)):
        return f"fine-tuned for {record.step:,} steps"
    split = manifests.load(workdir).split("train")
    num_records = record.step * record.config["training"]["global_batch_size"]
    epochs = num_records / split.num_records
    return f"fine-tuned on {epochs:.2g} x {split.words:,} words"
