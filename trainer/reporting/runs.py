"""Reads the folders of runs for a report. Needs no TensorFlow."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

from configs import schema
from configs.errors import UserError
from tfrecords import manifest as manifests
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.run_dir import json_files, layout, metrics, plans, results

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Run:
    """The contents of a run's folder; what is missing there is empty.

    Attributes:
      name: for people; unique on a page.
      workdir: the folder.
      record: `run.json`.
      metrics, samples, events: the lines of these files.
      evaluations, plans: the files of these folders.
      manifest: of the dataset.
    """

    name: str
    workdir: str
    record: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    events: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    plans: list[dict[str, Any]]
    manifest: Manifest | None

    def points(self, name: str) -> list[Point]:
        """Returns (step, value) of all finite values of a metric, by step."""
        points = [
            (line["step"], line[name])
            for line in self.metrics
            if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
        ]
        return sorted(points, key=lambda point: point[0])

    @property
    def input(self) -> str:
        """The preprocessed files: of the config, or else of the manifest."""
        if self.config.get("data.input"):
            return str(self.config["data.input"])
        sources = self.manifest.config.get("input", []) if self.manifest else []
        return ",".join(str(name) for name, *_ in sources)

    @property
    def config(self) -> dict[str, Any]:
        """The config, by full names such as "data.input"."""
        return dict(schema.leaves(self.record.get("config", {})))

    @property
    def summary(self) -> str:
        """A sentence: what was trained, on what, and where."""
        shape = self.record.get("model_config", {})
        sizes = {"n_layer": "{} layers", "n_head": "{} heads", "n_embd": "width {}"}
        parts = [
            text.format(shape[name]) for name, text in sizes.items() if name in shape
        ]
        start = self.config.get("model.initial_checkpoint") or "random weights"
        first, *others = (self.input or "its dataset").split(",")
        source = PurePosixPath(first).name + f" and {len(others)} more" * bool(others)
        if self.manifest and "train" in self.manifest.splits:
            source += f" ({self.manifest.split('train').tokens:,} tokens)"
        return (
            f"A {self.config.get('model.architecture', '')} model of "
            f"{', '.join(parts) or 'unknown size'}, from {start}, trained on {source}, "
            f"on {self.record.get('hardware') or 'unknown hardware'}."
        )


def read(workdir: str, name: str) -> Run:
    """Reads a run's folder.

    Args:
      workdir: the folder.
      name: what the page calls the run.

    Raises:
      UserError: the folder has no `run.json`.
      DataError: a file in it is damaged.
    """

    def path(name: str) -> str:
        return files.join(workdir, name)

    if not files.exists(path(layout.RUN)):
        raise UserError(
            f"`--workdir` must be the folder of a run. Received: {workdir}, which has "
            f"no {layout.RUN}. Correct the folder, or start the run again with "
            "`trainer.train` of this version, which writes it."
        )
    has_manifest = files.exists(path(layout.MANIFEST))
    return Run(
        name=name,
        workdir=workdir,
        record=json_files.read(path(layout.RUN)),
        metrics=metrics.load(workdir),
        samples=json_files.read_lines(path(layout.SAMPLES), required_field="text"),
        events=json_files.read_lines(path(layout.EVENTS), required_field="message"),
        evaluations=results.load(workdir),
        plans=plans.load_all(workdir),
        manifest=manifests.load(workdir) if has_manifest else None,
    )


def names(workdirs: Sequence[str]) -> list[str]:
    """Returns the shortest ends of the paths that differ from each other.

    Raises:
      UserError: two paths are the same.
    """
    paths = [folder.rstrip("/").split("/") for folder in workdirs]
    for count in range(1, max(map(len, paths)) + 1):
        ends = ["/".join(path[-count:]) for path in paths]
        if len(set(ends)) == len(ends):
            return ends
    raise UserError(
        "`--workdirs` must name each run once. Received: "
        f"{', '.join(workdirs)}. Leave the repeated ones out."
    )
