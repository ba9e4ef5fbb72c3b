"""Send a run's metrics elsewhere: to TensorBoard always, to Weights & Biases if asked.

Another tracker is one class that follows `Tracker`, and one line in `_TRACKERS`.
`MetricsLog` calls the trackers.
"""

import html
import os
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams

from configs.errors import UserError
from configs.schema import Config, TrackingConfig, flatten
from tfrecords.storage import files
from trainer.run_dir import layout


class Tracker(Protocol):
    """Receives what a run measures. A tracker is made of (workdir, config)."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Records finite values by name."""

    def text(self, step: int, name: str, text: str) -> None:
        """Records a text, such as a sample."""

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Records the distribution of each array, of any shape."""

    def flush(self) -> None:
        """Sends what is buffered."""

    def close(self) -> None:
        """Sends what is buffered, and ends the recording."""


class TensorBoard:
    """Writes `WORKDIR/tensorboard`, as Keras's own callback lays it out.

    `train/` and `validation/` share their tags, so that TensorBoard draws both losses
    in one chart. The folder itself has the config, as text and as hyperparameters.

    Args:
      workdir: folder of the run.
      config: of the run.
    """

    def __init__(self, workdir: str, config: Config):
        folder = files.join(workdir, layout.TENSORBOARD)
        self._train, self._validation = (
            _file_writer(files.join(folder, name)) for name in ("train", "validation")
        )
        fields = flatten(config)
        rows = "".join(f"| {name} | `{value!r}` |\n" for name, value in fields.items())
        of_run = _file_writer(folder)
        with of_run.as_default(0):
            tf.summary.text("config", f"| field | value |\n|---|---|\n{rows}")
            hparams.hparams(
                {k: str(v) if v is None else v for k, v in fields.items()},
                trial_id=PurePosixPath(workdir).name,
            )
        of_run.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one summary for each value."""
        for name, value in values.items():
            tag = name.removeprefix("validation_")
            writer = self._train if tag == name else self._validation
            with writer.as_default(step):
                # TensorFlow makes a Python float a float32, and rejects 1e39.
                tf.summary.scalar(tag, np.float64(value))

    def text(self, step: int, name: str, text: str) -> None:
        """Writes a text summary."""
        with self._train.as_default(step):
            tf.summary.text(name, text)

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Writes a histogram summary for each array."""
        with self._train.as_default(step):
            for name, value in values.items():
                tf.summary.histogram(name, value)

    def flush(self) -> None:
        """Writes the buffered summaries to the files."""
        self._train.flush()
        self._validation.flush()

    def close(self) -> None:
        """Writes the buffered summaries and closes the files."""
        self._train.close()
        self._validation.close()


def _file_writer(folder: str) -> tf.summary.SummaryWriter:
    # Only `flush` writes: each time, a bucket gets a new file.
    return tf.summary.create_file_writer(
        folder, max_queue=1_000_000, flush_millis=3_600_000
    )


class WeightsAndBiases:
    """Writes a run of Weights & Biases; a workdir that continues is the same run.

    Args:
      workdir: folder of the run.
      config: of the run.

    Raises:
      UserError: the package `wandb` is missing, or the service refuses.
    """

    def __init__(self, workdir: str, config: Config):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                "`tracking.wandb` needs the package wandb. Received: no such package. "
                "Install it with `pip install 'gpt2-tpu[wandb]'`, or `pip install -e "
                "'.[wandb]'` in this folder."
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
                "`tracking.wandb` must reach Weights & Biases with your account. "
                f"Received: {error}. Run `wandb login`, or set WANDB_MODE=offline."
            ) from error
        self._wandb = wandb
        # A run that returns to a checkpoint reports some steps twice; wandb's own step
        # counter would drop the second report.
        self._run.define_metric("*", step_metric="step")
        self._step: int | None = None  # of the row that is not complete yet

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs the values."""
        self._log(step, values)

    def text(self, step: int, name: str, text: str) -> None:
        """Logs a text as preformatted HTML."""
        page = f"<pre>{html.escape(text)}</pre>"
        self._log(step, {name: self._wandb.Html(page, inject=False)})

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Logs a histogram of 64 bins for each array."""
        histogram = self._wandb.Histogram
        self._log(
            step,
            {
                name: histogram(np_histogram=np.histogram(value, bins=64))
                for name, value in values.items()
            },
        )

    def flush(self) -> None:
        """Does nothing: wandb sends by itself."""

    def close(self) -> None:
        """Sends the rest and finishes the run."""
        self._run.finish()

    def _log(self, step: int, values: Mapping[str, Any]) -> None:
        """Adds values to the row of a step, which ends where another step begins."""
        if self._step not in (None, step):
            self._run.log({}, commit=True)
        self._step = step
        self._run.log({"step": step, **values}, commit=False)


# (whether the config asks for it, the tracker)
_TRACKERS: tuple[
    tuple[Callable[[TrackingConfig], bool], Callable[[str, Config], Tracker]], ...
] = (
    (lambda tracking: True, TensorBoard),
    (lambda tracking: tracking.wandb, WeightsAndBiases),
)


def create(workdir: str, config: Config) -> list[Tracker]:
    """Returns the trackers that the config asks for."""
    return [
        make(workdir, config)
        for is_wanted, make in _TRACKERS
        if is_wanted(config.tracking)
    ]


def _wandb_id(workdir: str) -> str:
    """Returns the run's id at Weights & Biases, which the workdir keeps."""
    path = files.join(workdir, layout.WANDB_ID)
    if not files.exists(path):
        files.write(path, uuid.uuid4().hex.encode())
    return files.read(path).decode()
