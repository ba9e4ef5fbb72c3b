"""Draw what a run measures: TensorBoard always, Weights & Biases if it is asked for.

`metrics` hands them what it writes itself.
"""

import html
import os
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from configs.errors import UserError
from configs.schema import Config, flatten
from tfrecords.storage import files


class TensorBoard:
    """Writes `WORKDIR/tensorboard`, with the config as text and as hyperparameters."""

    def __init__(self, workdir: str, config: Config):
        self._summaries = tf.summary.create_file_writer(
            files.join(workdir, "tensorboard"),
            # Not before it is told to: in a bucket, each time is a new file.
            max_queue=1_000_000,
            flush_millis=3_600_000,
        )
        fields = flatten(config)
        rows = "".join(f"| {name} | `{value!r}` |\n" for name, value in fields.items())
        self.text(0, "config", f"| field | value |\n|---|---|\n{rows}")
        with self._summaries.as_default(0):
            hparams.hparams(
                {k: str(v) if v is None else v for k, v in fields.items()},
                trial_id=PurePosixPath(workdir).name,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._summaries.as_default(step):
            for name, value in values.items():
                # As float32, which it makes of a Python float, 1e39 would be an error.
                tf.summary.scalar(name, np.float64(value))

    def text(self, step: int, name: str, text: str) -> None:
        with self._summaries.as_default(step):
            tf.summary.text(name, text)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        with self._summaries.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def flush(self) -> None:
        self._summaries.flush()

    def close(self) -> None:
        self._summaries.close()


class WeightsAndBiases:
    """Writes a run of Weights & Biases; a workdir that continues is the same run.

    Raises:
      UserError: its package is not there, or it refuses.
    """

    def __init__(self, workdir: str, config: Config):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "`tracking.wandb` needs a package: pip install 'gpt2-tpu[wandb]', or "
                "`pip install -e '.[wandb]'` in this folder."
            ) from error
        folder = workdir
        if files.is_remote(workdir):
            folder = tempfile.mkdtemp(prefix="wandb-")
        os.makedirs(folder, exist_ok=True)
        try:
            self._run = wandb.init(
                project=config.tracking.wandb_project,
                name=PurePosixPath(workdir).name,
                id=_wandb_id(workdir),
                resume="allow",
                dir=folder,
                config=flatten(config),
            )
        except wandb.errors.Error as error:
            raise UserError(
                "`tracking.wandb` must reach Weights & Biases with your account: run "
                f"`wandb login`, or set WANDB_MODE=offline. It said: {error}"
            ) from error
        self._wandb = wandb
        # A run that goes back to a checkpoint reports some steps twice, which its own
        # count of steps would drop.
        self._run.define_metric("*", step_metric="step")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def text(self, step: int, name: str, text: str) -> None:
        page = f"<pre>{html.escape(text)}</pre>"
        self._run.log({"step": step, name: self._wandb.Html(page, inject=False)})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        for name, value in values.items():
            counted = self._wandb.Histogram(np_histogram=np.histogram(value, bins=64))
            self._run.log({"step": step, name: counted})

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


Tracker = TensorBoard | WeightsAndBiases


def create(workdir: str, config: Config) -> list[Tracker]:
    """Returns those that the config asks for."""
    found: list[Tracker] = [TensorBoard(workdir, config)]
    if config.tracking.wandb:
        found.append(WeightsAndBiases(workdir, config))
    return found


def _wandb_id(workdir: str) -> str:
    """Returns what Weights & Biases knows the run by; the workdir keeps it."""
    path = files.join(workdir, "wandb_id")
    if not files.exists(path):
        files.write(path, uuid.uuid4().hex.encode())
    return files.read(path).decode()
