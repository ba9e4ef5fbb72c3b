"""What `trainer.evaluate` found of a run: `WORKDIR/evaluations/`.

A file for each step and protocol.
"""

import hashlib
import json
from typing import Any

from tfrecords import storage
from trainer.tracking import journal

_FOLDER = "evaluations"


def keep(workdir: str, result: dict[str, Any]) -> None:
    """Writes a result; one by the same protocol at the same step is replaced."""
    stamp = json.dumps([result["step"], result["protocol"]], sort_keys=True)
    digest = hashlib.sha256(stamp.encode()).hexdigest()[:16]
    name = f"step-{result['step']:08d}-{digest}.json"
    path = storage.join(storage.join(workdir, _FOLDER), name)
    text = json.dumps(result, indent=1, allow_nan=False) + "\n"
    storage.write(path, text.encode())


def load(workdir: str) -> list[dict[str, Any]]:
    """Returns all results, by step.

    Raises:
      ConfigError: one is damaged.
    """
    return journal.folder(storage.join(workdir, _FOLDER))
