"""Keeps results of `trainer.evaluate`: `WORKDIR/evaluations/`, a file for each."""

import hashlib
import json
from typing import Any

from tfrecords.storage import files
from trainer.run_dir import json_files, layout


def save(workdir: str, result: dict[str, Any]) -> None:
    """Writes a result; replaces an earlier one of the same step and protocol."""
    key = json.dumps([result["step"], result["protocol"]], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    name = f"{layout.EVALUATIONS}/step-{result['step']:08d}-{digest}.json"
    json_files.write(files.join(workdir, name), result)


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all results, by step.

    Raises:
      DataError: a file is damaged.
    """
    return json_files.read_folder(files.join(workdir, layout.EVALUATIONS))
