"""Saves and restores a run: model, optimizer, step, and what they belong to.

`WORKDIR/checkpoints/step-00000100/` holds `state.safetensors` and, written last,
`checkpoint.json` with its checksum. A folder without that file is an incomplete save
and is removed. A damaged checkpoint is renamed to `step-00000100.damaged`, and the one
before it is restored.
"""

import concurrent.futures
import dataclasses
import re
import zlib
from typing import Any

import safetensors
import tf_keras
from absl import logging

from configs import schema
from configs.errors import DataError, RunError, TryAgainError
from tfrecords import manifest as manifests
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.checkpoints import folders, lora_base, tensor_file
from trainer.models import registry, variables
from trainer.models.architecture import Architecture
from trainer.models.create import create_model
from trainer.run_dir import json_files, layout
from trainer.tasks import registry as tasks
from trainer.tasks.step import TrainingStep

# Fields that may differ on a resume: they do not change what the run computes.
_FREE_FIELDS = {
    "training.microbatch_size",
    "training.remat",
    "hardware.tpu_type",
    "hardware.on_mismatch",
    "training.evaluation_interval",
    "training.checkpoint_interval",
    "training.steps_per_execution",
    "training.keep_last",
    "training.keep_every",
    "training.early_stopping_patience",
    "training.max_skipped_in_a_row",
}


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: folder of the run.
      training_step: owns the model and its optimizer, whose `iterations` are the step.
      config: of the run.
      manifest: of its dataset.
      writes: whether this machine writes checkpoints. All machines read them.
    """

    def __init__(
        self,
        workdir: str,
        *,
        training_step: TrainingStep,
        config: schema.Config,
        manifest: Manifest,
        writes: bool = True,
    ):
        self._folder = folders.root(workdir)
        self._model = training_step.model
        self._optimizer = training_step.optimizer
        self._config = config
        self._manifest = manifest
        self._writes = writes
        self._base_sha256 = lora_base.sha256_of(self._model)
        self._variables = tensor_file.named("model", lora_base.saved(self._model))
        self._variables |= tensor_file.named("optimizer", self._optimizer.variables)
        self._variables |= {
            "skipped_updates": training_step.skipped_updates,
            "skipped_in_a_row": training_step.skipped_in_a_row,
        }
        self._host_copy = tensor_file.HostCopy(self._variables)
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._saving: concurrent.futures.Future | None = None
        self._saved_step = 0

    def fingerprint(self) -> str:
        """Returns the CRC-32 of all values, to compare machines."""
        crc = zlib.crc32(self._base_sha256.encode())
        for value in self._host_copy.take().values():
            crc = zlib.crc32(value.tobytes(), crc)
        return f"{crc:08x}"

    def check_room(self) -> None:
        """Raises RunError where the disk has no room for the checkpoints."""
        settings, num = self._config.training, 1
        if not files.is_remote(self._folder):
            # One more for the best, and a new one is complete before the oldest goes.
            finds_best = "validation" in self._manifest.splits
            saves_often = settings.checkpoint_interval > 0 or (
                finds_best and settings.evaluation_interval > 0
            )
            num += finds_best + settings.keep_last * saves_often
            num = max(num - len(folders.list_folders(self._folder)), 1)
        num_bytes = num * variables.num_bytes(self._variables.values())
        files.check_free_space(self._folder.rpartition("/")[0], num_bytes)

    def save(self, best_step: int = 0) -> None:
        """Saves the current state unless it is saved already, and removes old ones.

        The values are copied before this returns; a thread writes them while training
        continues.

        Args:
          best_step: step whose checkpoint is kept in any case.

        Raises:
          RunError: the previous save failed.
        """
        step = int(self._optimizer.iterations.numpy())
        if step == self._saved_step or not self._writes:
            return
        self.close()
        self._saved_step = step
        values = self._host_copy.take()
        self._saving = self._thread.submit(self._write, step, values, best_step)

    def close(self) -> None:
        """Waits until the last save is complete.

        Raises:
          RunError: the save failed.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def raise_failure(self) -> None:
        """Raises RunError where the save in progress has failed."""
        if self._saving and self._saving.done():
            self.close()

    def _write(self, step: int, values: dict[str, Any], best_step: int) -> None:
        folder = f"{self._folder}/step-{step:08d}"
        try:
            num_bytes, sha256 = tensor_file.write(values, f"{folder}/{folders.STATE}")
            record = folders.Record(
                format_version=folders.FORMAT_VERSION,
                step=step,
                state_bytes=num_bytes,
                state_sha256=sha256,
                config=dataclasses.asdict(self._config),
                model_config=self._model.config.to_dict(),
                dataset_fingerprint=self._manifest.fingerprint,
                tokenizer_fingerprint=self._manifest.tokenizer_fingerprint,
                base_sha256=self._base_sha256,
            )
            fields = dataclasses.asdict(record)
            if not self._base_sha256:  # older versions know no such field
                del fields["base_sha256"]
            json_files.write(f"{folder}/{folders.RECORD}", fields)
            self._remove_old(best_step)
        except Exception as error:  # any failure of the thread must stop the run
            # The address of a resumable upload grants access, like a key.
            message = re.sub(r"upload_id=[^&\s]+", "upload_id=…", str(error))
            failure = RunError(
                f"Step {step} could not be saved to {folder}: {message}. Earlier "
                "checkpoints are intact; the same command continues from them."
            )
            if isinstance(error, TryAgainError):
                failure.exit_code = error.exit_code
            raise failure from error

    def _remove_old(self, best_step: int) -> None:
        settings = self._config.training
        for folder in folders.list_folders(self._folder)[: -settings.keep_last]:
            step = folders.step_of(folder)
            stays = settings.keep_every and step % settings.keep_every == 0
            if not stays and step != best_step:
                folders.remove(folder)

    def restore(self) -> int:
        """Restores the newest intact checkpoint, if there is one.

        Returns:
          Its step; 0 without a checkpoint.

        Raises:
          DataError: the checkpoint belongs to another config or dataset, or all
            checkpoints are damaged.
        """
        newest = folders.newest_intact(
            folders.list_folders(self._folder), set_aside=self._writes
        )
        if newest:
            self._check_same_run(newest[1])
        for leftover in (
            folders.list_folders(self._folder, whole=False) if self._writes else []
        ):
            logging.warning("removing %s, an incomplete save", leftover)
            folders.remove(leftover)
        if not newest:
            return 0
        folder, record = newest
        _assign(folder, self._variables, whole=True)
        self._saved_step = record.step
        logging.info("continuing from %s", folder)
        return record.step

    def _check_same_run(self, record: folders.Record) -> None:
        if record.dataset_fingerprint != self._manifest.fingerprint:
            raise DataError(
                "`--workdir` must belong to the dataset of `--data_dir`. Received: a "
                f"run on dataset {record.dataset_fingerprint[:12]}, and dataset "
                f"{self._manifest.fingerprint[:12]}. Give a new --workdir, or the "
                "dataset that the run began with."
            )
        stored = schema.flatten(schema.from_dict(record.config))
        different = [
            f"{name}: {stored[name]!r} in the workdir, {value!r} now"
            for name, value in schema.flatten(self._config).items()
            if not (schema.is_of_dataset(name) or name.startswith("tracking."))
            and name not in _FREE_FIELDS
            and stored[name] != value
        ]
        if different:
            raise DataError(
                "`--workdir` holds a run of another config:\n  "
                + "\n  ".join(different)
                + "\nGive the values that the run began with. To train on with "
                "other values, export it, and start in a new --workdir with "
                "--config.model.initial_checkpoint set to the export."
            )
        lora_base.check(record, self._base_sha256)


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model without its optimizer, and the checkpoint's record."""

    model: tf_keras.Model
    architecture: Architecture
    record: folders.Record


def load_model(workdir: str, step: int = 0) -> LoadedModel:
    """Loads the model of a run's checkpoint.

    Args:
      workdir: of the run.
      step: of the checkpoint; 0: the newest intact one.

    Raises:
      DataError: the workdir has no checkpoint, or not that one, or only damaged ones;
        or LoRA's base has changed.
    """
    checkpoint_folders = folders.list_folders(folders.root(workdir))
    wanted = [
        folder for folder in checkpoint_folders if step in (0, folders.step_of(folder))
    ]
    if checkpoint_folders and not wanted:
        steps = ", ".join(str(folders.step_of(folder)) for folder in checkpoint_folders)
        raise DataError(
            f"`--step` must be that of a checkpoint in {workdir}: {steps}. "
            f"Received: {step}."
        )
    newest = folders.newest_intact(wanted, set_aside=False)
    if not newest:
        raise DataError(
            f"`--workdir` must hold a run with a checkpoint. Received: {workdir}, "
            "which has none. Train there first, or correct the folder."
        )
    folder, record = newest
    architecture = registry.get(record.config["model"]["architecture"])
    if record.base_sha256:
        config, manifest = schema.from_dict(record.config), manifests.load(workdir)
        model = create_model(
            config.model,
            manifest,
            config.training.seed,
            files.join(workdir, layout.TOKENIZER),
            tasks.get(config.training.task).labels(manifest),
        )
        lora_base.check(record, lora_base.sha256_of(model))
    else:
        configuration = architecture.configuration_class.from_dict(record.model_config)
        model = architecture.build(configuration)
    _assign(folder, tensor_file.named("model", lora_base.saved(model)), whole=False)
    return LoadedModel(model, architecture, record)


def _assign(folder: str, variables: dict[str, Any], *, whole: bool) -> None:
    try:
        tensor_file.read(f"{folder}/{folders.STATE}", variables, whole=whole)
    except (DataError, safetensors.SafetensorError) as error:
        raise DataError(
            f"{folder} does not hold this model and optimizer: {error}. Give a new "
            "--workdir, or what the run began with."
        ) from error
