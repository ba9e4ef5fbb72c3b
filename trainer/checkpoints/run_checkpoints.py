"""Saves and restores a run: model, optimizer, step, and what they belong to.

`WORKDIR/checkpoints/step-00000100/` holds `tensor_file.safetensors` and, written last,
`checkpoint.json` with its checksum: a folder without it is a torn save, and is removed.
A damaged one is kept beside them as `step-00000100.damaged`, and the one before it is
taken.
"""

import concurrent.futures
import dataclasses
import json
import re
import zlib
from typing import Any

import safetensors
import tf_keras
from absl import logging

from configs import schema
from configs.errors import DataError, RunError, TryAgainError
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.checkpoints import tensor_file
from trainer.models import registry, variables
from trainer.models.architecture import Architecture
from trainer.run_dir import layout
from trainer.tasks.step import TrainingStep

FORMAT_VERSION = 2
_STATE = "state.safetensors"
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
    "training.keep_every",
    "training.early_stopping_patience",
    "training.max_skipped_in_a_row",
}


class _DamagedError(ValueError):
    """What is in a checkpoint's folder is not what was saved."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What `checkpoint.json` says of the state beside it."""

    format_version: int
    step: int
    state_bytes: int
    state_sha256: str
    config: dict[str, Any]
    model_config: dict[str, Any]  # the architecture's configuration
    dataset_fingerprint: str
    tokenizer_fingerprint: str


class Checkpoints:
    """The checkpoints of one run.

    Args:
      workdir: of the run.
      training_step: owns the model and its optimizer, whose `iterations` are the step.
      config: of the run.
      manifest: of its dataset.
      writes: whether this machine writes them; all read them.
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
        self._folder = _folder(workdir)
        self._model = training_step.model
        self._optimizer = training_step.optimizer
        self._config = config
        self._manifest = manifest
        self._writes = writes
        self._variables = tensor_file.named("model", self._model.variables)
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
        """Returns what differs where a value does."""
        crc = 0
        for value in self._host_copy.take().values():
            crc = zlib.crc32(value.tobytes(), crc)
        return f"{crc:08x}"

    def check_room(self) -> None:
        """Raises UserError where the disk has no room for what is to be saved."""
        settings, num = self._config.training, 1
        if not files.is_remote(self._folder):
            # The best one; and a new one is whole before the oldest goes.
            finds_best = "validation" in self._manifest.splits
            saves_often = settings.checkpoint_interval > 0 or (
                finds_best and settings.evaluation_interval > 0
            )
            num += finds_best + settings.keep_last * saves_often
            num = max(num - len(_folders(self._folder)), 1)
        num_bytes = num * variables.num_bytes(self._variables.values())
        files.check_free_space(self._folder.rpartition("/")[0], num_bytes)

    def save(self, best_step: int = 0) -> None:
        """Saves the present state, unless that is done; removes what need not stay.

        The values are copied here and now; a thread writes them while training goes on.

        Args:
          best_step: whose checkpoint stays in any case.

        Raises:
          RunError: the save before this one failed.
        """
        step = int(self._optimizer.iterations.numpy())
        if step == self._saved_step or not self._writes:
            return
        self.close()
        self._saved_step = step
        values = self._host_copy.take()
        self._saving = self._thread.submit(self._write, step, values, best_step)

    def close(self) -> None:
        """Waits until what was saved is there.

        Raises:
          RunError: it could not be written.
        """
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def raise_failure(self) -> None:
        """Raises RunError where the save that goes on has failed already."""
        if self._saving and self._saving.done():
            self.close()

    def _write(self, step: int, values: dict[str, Any], best_step: int) -> None:
        folder = f"{self._folder}/step-{step:08d}"
        try:
            num_bytes, sha256 = tensor_file.write(values, f"{folder}/{_STATE}")
            record = Record(
                format_version=FORMAT_VERSION,
                step=step,
                state_bytes=num_bytes,
                state_sha256=sha256,
                config=dataclasses.asdict(self._config),
                model_config=self._model.config.to_dict(),
                dataset_fingerprint=self._manifest.fingerprint,
                tokenizer_fingerprint=self._manifest.tokenizer_fingerprint,
            )
            text = json.dumps(dataclasses.asdict(record), indent=1) + "\n"
            files.write(f"{folder}/{_RECORD}", text.encode())
            self._remove_old(best_step)
        except Exception as error:  # whatever it is, the run must hear of it
            # The address of an upload that goes on is as good as a key.
            said = re.sub(r"upload_id=[^&\s]+", "upload_id=…", str(error))
            failure = RunError(
                f"Step {step} could not be saved to {folder}: {said}. What was saved "
                "before is there; the same command continues from it."
            )
            if isinstance(error, TryAgainError):
                failure.exit_code = error.exit_code
            raise failure from error

    def _remove_old(self, best_step: int) -> None:
        settings = self._config.training
        for folder in _folders(self._folder)[: -settings.keep_last]:
            step = _step(folder)
            stays = settings.keep_every and step % settings.keep_every == 0
            if not stays and step != best_step:
                _remove(folder)

    def restore(self) -> int:
        """Continues from the newest whole checkpoint, if there is any.

        Returns:
          Its step; 0 where there is none.

        Raises:
          DataError: it is of another config, dataset or tokenizer, or there are
            checkpoints, and all of them are damaged.
        """
        found = _newest_whole(_folders(self._folder), set_aside=self._writes)
        if found:
            self._check_same_run(found[1])
        for leftover in _folders(self._folder, whole=False) if self._writes else []:
            logging.warning("removing %s, left by a save that was stopped", leftover)
            _remove(leftover)
        if not found:
            return 0
        folder, record = found
        _assign(folder, self._variables, whole=True)
        self._saved_step = record.step
        logging.info("continuing from %s", folder)
        return record.step

    def _check_same_run(self, record: Record) -> None:
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
            # The dataset's fingerprint stands for all of `data`.
            if not name.startswith(("data.", "tracking."))
            and name not in _FREE_FIELDS
            and stored[name] != value
        ]
        if different:
            raise DataError(
                "`--workdir` holds a run of another config:\n  "
                + "\n  ".join(different)
                + "\nGive a new --workdir, or the values that the run began with."
            )


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A checkpoint's model without its optimizer, and the checkpoint's record."""

    model: tf_keras.Model
    architecture: Architecture
    record: Record


def load_model(workdir: str, step: int = 0) -> LoadedModel:
    """Loads the model of a run's checkpoint.

    Args:
      workdir: of the run.
      step: of the checkpoint; 0: the newest whole one.

    Raises:
      DataError: the workdir has no checkpoint, not this one, or only damaged ones.
    """
    checkpoint_folders = _folders(_folder(workdir))
    wanted = [folder for folder in checkpoint_folders if step in (0, _step(folder))]
    if checkpoint_folders and not wanted:
        steps = ", ".join(str(_step(folder)) for folder in checkpoint_folders)
        raise DataError(
            f"`--step` must be that of a checkpoint in {workdir}: {steps}. "
            f"Received: {step}."
        )
    newest = _newest_whole(wanted, set_aside=False)
    if not newest:
        raise DataError(
            f"`--workdir` must hold a run with a checkpoint. Received: {workdir}, "
            "which has none. Train there first, or correct the folder."
        )
    folder, record = newest
    architecture = registry.get(record.config["model"]["architecture"])
    configuration = architecture.configuration_class.from_dict(record.model_config)
    model = architecture.build(configuration)
    _assign(folder, tensor_file.named("model", model.variables), whole=False)
    return LoadedModel(model, architecture, record)


def _folder(workdir: str) -> str:
    return files.join(workdir, layout.CHECKPOINTS)


def _folders(folder: str, *, whole: bool = True) -> list[str]:
    """Returns the checkpoints with a record, by step; or those that have none."""
    names: dict[str, set[str]] = {}
    for path in files.expand(folder):
        parent, _, name = path.rpartition("/")
        if re.fullmatch(r"step-\d{8,}", parent.rpartition("/")[2]):
            names.setdefault(parent, set()).add(name)
    found = [parent for parent in names if (_RECORD in names[parent]) == whole]
    return sorted(found, key=_step)


def _step(folder: str) -> int:
    return int(folder.rpartition("/step-")[2])


def _newest_whole(folders: list[str], *, set_aside: bool) -> tuple[str, Record] | None:
    """Returns the newest checkpoint that is as it was saved; None where there is none.

    Args:
      folders: of checkpoints, by step.
      set_aside: rename the damaged ones that are newer, so that they are no more in the
        way and still can be looked at.

    Raises:
      DataError: all are damaged, or one is of another format.
    """
    problems: dict[str, str] = {}
    for path in reversed(folders):
        try:
            record = _verified(path)
        except _DamagedError as error:
            problems[path] = str(error)
            continue
        for damaged, problem in problems.items():
            logging.error("%s Taking %s instead.", problem, path)
            if set_aside:
                _set_aside(damaged)
        return path, record
    if problems:
        raise DataError(
            "All checkpoints are damaged:\n  "
            + "\n  ".join(problems.values())
            + "\nGive a new --workdir to begin anew, or bring back a checkpoint."
        )
    return None


def _remove(folder: str) -> None:
    """Removes a checkpoint; stopped in between, it leaves an incomplete one."""
    files.remove(f"{folder}/{_RECORD}")
    files.remove(folder)


def _set_aside(folder: str) -> None:
    for name in (_STATE, _RECORD):  # without its record, it would be removed
        if files.exists(f"{folder}/{name}"):
            files.move(f"{folder}/{name}", f"{folder}.damaged/{name}")
    files.remove(folder)


def _verified(folder: str) -> Record:
    record = _read_record(folder)
    if record.step != _step(folder):
        raise _DamagedError(
            f"{folder}/{_RECORD} is damaged: its step is {record.step}."
        )
    path = f"{folder}/{_STATE}"
    if not files.exists(path):
        raise _DamagedError(f"{path} is missing.")
    num_bytes, sha256 = tensor_file.checksum(path)
    if (num_bytes, sha256) != (record.state_bytes, record.state_sha256):
        raise _DamagedError(
            f"{path} must have {record.state_bytes} bytes and the SHA-256 "
            f"{record.state_sha256[:16]}…. It has {num_bytes} and {sha256[:16]}…."
        )
    return record


def _read_record(folder: str) -> Record:
    path = f"{folder}/{_RECORD}"
    text = files.read(path)
    try:
        values = json.loads(text)
        version = values["format_version"]
        if version == FORMAT_VERSION:
            return Record(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise _DamagedError(f"{path} is damaged: {error!r}.") from error
    raise DataError(
        f"{path} must have format version {FORMAT_VERSION}. Received: {version!r}. Use "
        "the version of gpt2-tpu that wrote it, or a new --workdir."
    )


def _assign(folder: str, variables: dict[str, Any], *, whole: bool) -> None:
    try:
        tensor_file.read(f"{folder}/{_STATE}", variables, whole=whole)
    except (DataError, safetensors.SafetensorError) as error:
        raise DataError(
            f"{folder} does not hold this model and optimizer: {error}. Give a new "
            "--workdir, or what the run began with."
        ) from error
