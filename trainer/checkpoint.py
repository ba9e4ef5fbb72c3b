"""Saves and restores a run: model, optimizer, step, and what they belong to.

`WORKDIR/checkpoints/step-00000100/` holds TensorFlow's `state.*` files and, written
last, `checkpoint.json`: a folder without it is a torn save, and is removed.
"""

import dataclasses
import json
import re
from typing import Any

import tensorflow as tf
from absl import logging
from etils import epath
from transformers import GPT2Config, TFGPT2LMHeadModel

from configs import schema
from tfrecords.manifest import Manifest
from trainer import model
from trainer.task import LanguageModelTask

FORMAT_VERSION = 1
_RECORD = "checkpoint.json"
# They change how a run is carried out, not what it computes.
_FREE_FIELDS = {
    "training.microbatch_size",
    "training.remat",
    "hardware.tpu_type",
    "hardware.on_mismatch",
    "training.evaluation_interval",
    "training.checkpoint_interval",
    "training.steps_per_execution",
    "training.keep_last",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used here; the message says why and what to do."""

    exit_code = 2


@dataclasses.dataclass(frozen=True)
class Record:
    """What `checkpoint.json` says beside the weights."""

    format_version: int
    step: int
    config: dict[str, Any]
    model_config: dict[str, Any]  # GPT2Config
    dataset_fingerprint: str
    tokenizer_fingerprint: str


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: of the run.
      task: owns the model and its optimizer, whose `iterations` are the step.
      config: of the run.
      manifest: of its dataset.
    """

    def __init__(
        self,
        workdir: str,
        *,
        task: LanguageModelTask,
        config: schema.Config,
        manifest: Manifest,
    ):
        self._folder = _folder(workdir)
        self._gpt2 = task.gpt2
        self._optimizer = task.optimizer
        self._config = config
        self._manifest = manifest
        self._state = tf.train.Checkpoint(model=task.gpt2, optimizer=task.optimizer)

    def save(self) -> None:
        """Saves the present state, unless that is done; removes the oldest ones."""
        step = int(self._optimizer.iterations.numpy())
        folder = self._folder / f"step-{step:08d}"
        if (folder / _RECORD).exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._state.write(str(folder / "state"))
        record = Record(
            format_version=FORMAT_VERSION,
            step=step,
            config=dataclasses.asdict(self._config),
            model_config=self._gpt2.config.to_dict(),
            dataset_fingerprint=self._manifest.fingerprint,
            tokenizer_fingerprint=self._manifest.tokenizer_fingerprint,
        )
        partial = folder / f"{_RECORD}.partial"
        partial.write_text(json.dumps(dataclasses.asdict(record), indent=1) + "\n")
        partial.replace(folder / _RECORD)
        for old in _complete(self._folder)[: -self._config.training.keep_last]:
            old.rmtree()

    def restore(self) -> int:
        """Continues from the newest checkpoint, if there is one; returns its step.

        Raises:
          CheckpointError: it is of another config, dataset or tokenizer, or damaged.
        """
        complete = _complete(self._folder)
        if complete:
            record = _read_record(complete[-1])
            self._check_same_run(record)
        for leftover in _incomplete(self._folder):
            logging.warning("removing %s, left by a save that was stopped", leftover)
            leftover.rmtree()
        if not complete:
            return 0
        try:
            status = self._state.read(str(complete[-1] / "state"))
            status.assert_consumed()
        except (AssertionError, ValueError, tf.errors.OpError) as error:
            raise CheckpointError(
                f"{complete[-1]} does not hold this model and optimizer, or is damaged:"
                f" {str(error).strip().splitlines()[0]}"
            ) from error
        logging.info("continuing from %s", complete[-1])
        return record.step

    def _check_same_run(self, record: Record) -> None:
        if record.dataset_fingerprint != self._manifest.fingerprint:
            raise CheckpointError(
                "`--workdir` must belong to the dataset of `--data_dir`. Received: a "
                f"run on dataset {record.dataset_fingerprint[:12]}, and dataset "
                f"{self._manifest.fingerprint[:12]}. Give a new --workdir, or the "
                "dataset that the run began with."
            )
        stored = schema.flatten(schema.from_dict(record.config))
        different = [
            f"{name}: {stored[name]!r} in the workdir, {value!r} now"
            for name, value in schema.flatten(self._config).items()
            # The dataset's fingerprint stands for all of `data`.
            if not name.startswith("data.")
            and name not in _FREE_FIELDS
            and stored[name] != value
        ]
        if different:
            raise CheckpointError(
                "`--workdir` holds a run of another config:\n  "
                + "\n  ".join(different)
                + "\nGive a new --workdir, or the values that the run began with."
            )


def load_model(workdir: str) -> tuple[TFGPT2LMHeadModel, Record]:
    """Loads the newest checkpoint's model, without its optimizer.

    Raises:
      CheckpointError: the workdir has no checkpoint, or a damaged one.
    """
    complete = _complete(_folder(workdir))
    if not complete:
        raise CheckpointError(
            f"`--workdir` must hold a run with a checkpoint. Received: {workdir}, "
            "which has none. Train there first, or correct the folder."
        )
    record = _read_record(complete[-1])
    gpt2 = model.from_shape(GPT2Config.from_dict(record.model_config))
    state = tf.train.Checkpoint(model=gpt2)
    try:
        status = state.read(str(complete[-1] / "state"))
        status.assert_existing_objects_matched().expect_partial()
    except (AssertionError, ValueError, tf.errors.OpError) as error:
        raise CheckpointError(
            f"{complete[-1]} does not hold its model, or is damaged: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    return gpt2, record


def _folder(workdir: str) -> epath.Path:
    return epath.Path(workdir) / "checkpoints"


def _step_folders(folder: epath.Path) -> list[epath.Path]:
    if not folder.exists():
        return []
    found = [p for p in folder.iterdir() if re.fullmatch(r"step-\d{8,}", p.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _complete(folder: epath.Path) -> list[epath.Path]:
    return [path for path in _step_folders(folder) if (path / _RECORD).exists()]


def _incomplete(folder: epath.Path) -> list[epath.Path]:
    return [path for path in _step_folders(folder) if not (path / _RECORD).exists()]


def _read_record(folder: epath.Path) -> Record:
    try:
        values = json.loads((folder / _RECORD).read_text())
        version = values["format_version"]
        if version == FORMAT_VERSION:
            return Record(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder / _RECORD} is damaged: {error!r}.") from error
    raise CheckpointError(
        f"{folder / _RECORD} must have format version {FORMAT_VERSION}. "
        f"Received: {version!r}."
    )
