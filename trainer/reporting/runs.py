"""A run as its folder has it. Needs no TensorFlow."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from configs.errors import UserError
from tfrecords import manifest as manifests
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.run_dir import journal, results


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run's folder holds; what is not there is empty.

    Attributes:
      name: for people; no other run of the page has it.
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

    def points(self, name: str) -> list[tuple[float, float]]:
        """Returns (step, value) of all lines that have a finite one."""
        found = [
            (line["step"], line[name])
            for line in self.metrics
            if isinstance(line.get(name), (int, float)) and math.isfinite(line[name])
        ]
        return sorted(found, key=lambda point: point[0])

    @property
    def last_step(self) -> int:
        return max((line["step"] for line in self.metrics), default=0)

    @property
    def input(self) -> str:
        """What was preprocessed: the config's, or else the files of the manifest."""
        given = self.config.get("data.input")
        files = self.manifest.config.get("input", []) if self.manifest else []
        return given or ",".join(str(file[0]) for file in files)

    @property
    def config(self) -> dict[str, Any]:
        """The fields by their full names, as `schema.flatten` names them."""
        return {
            f"{concern}.{field}": value
            for concern, fields in self.record.get("config", {}).items()
            for field, value in fields.items()
        }


def read(workdir: str, name: str) -> Run:
    """Reads a run's folder.

    Raises:
      UserError: it has no `run.json`, or a file in it is damaged.
      DataError: its manifest is damaged.
    """
    path = files.join(workdir, journal.RUN_NAME)
    if not files.exists(path):
        raise UserError(
            f"`--workdir` must be the folder of a run. Received: {workdir}, which has "
            f"no {journal.RUN_NAME}. Correct the folder, or start the run again with "
            "`trainer.train` of this version, which writes it."
        )
    path_of_manifest = files.join(workdir, manifests.FILE_NAME)
    manifest = None
    if files.exists(path_of_manifest):
        manifest = manifests.from_json(journal.text(path_of_manifest), path_of_manifest)
    return Run(
        name=name,
        workdir=workdir,
        record=journal.parse(journal.text(path), path),
        metrics=journal.lines(workdir, journal.METRICS_NAME, needed="step"),
        samples=journal.lines(workdir, journal.SAMPLES_NAME, needed="text"),
        events=journal.lines(workdir, journal.EVENTS_NAME, needed="message"),
        evaluations=results.load(workdir),
        plans=journal.folder(files.join(workdir, "plans")),
        manifest=manifest,
    )


def names(workdirs: Sequence[str]) -> list[str]:
    """Returns the shortest ends of the paths that are different from each other."""
    paths = [folder.rstrip("/").split("/") for folder in workdirs]
    for count in range(1, max(map(len, paths)) + 1):
        found = ["/".join(path[-count:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    raise UserError(
        f"`--workdirs` must name each run once. Received: {', '.join(workdirs)}."
    )
