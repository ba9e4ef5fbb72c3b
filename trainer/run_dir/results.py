"""What `trainer.evaluate` found of a run: `WORKDIR/evaluations/`.

A file for each step and protocol.
"""

import hashlib
import json
from typing import Any

from tfrecords.storage import files
from trainer.run_dir import journal

_FOLDER = "evaluations"


def keep(workdir: str, result: dict[str, Any]) -> None:
    """Writes a result; one by the same protocol at the same step is replaced."""
    stamp = json.dumps([result["step"], result["protocol"]], sort_keys=True)
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    name = f"step-{result['step']:08d}-{digest}.json"
    path = files.join(files.join(workdir, _FOLDER), name)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    files.write(path, text.encode())


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all results, by step.

    Raises:
      UserError: one is damaged.
    """
    return journal.folder(files.join(workdir, _FOLDER))
