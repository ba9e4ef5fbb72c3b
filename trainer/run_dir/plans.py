"""Plans of `trainer.plan`: `WORKDIR/plans/TPU_TYPE.json`."""

import json
from typing import Any

from configs.errors import DataError
from tfrecords.storage import files


def path(workdir: str, tpu_type: str) -> str:
    """Returns where the plan for a TPU type, such as "v3-8", is kept."""
    return files.join(workdir, f"plans/{tpu_type or 'unknown'}.json")


def save(workdir: str, plan: dict[str, Any]) -> None:
    """Writes a plan; replaces an earlier one for the same TPU type."""
    text = json.dumps(plan, indent=1) + "\n"
    files.write(path(workdir, plan["tpu_type"]), text.encode())


def load(workdir: str, tpu_type: str) -> dict[str, Any] | None:
    """Returns the plan for a TPU type; None: there is no such plan."""
    name = path(workdir, tpu_type)
    if not files.exists(name):
        return None
    try:
        plan = json.loads(files.read(name))
        if isinstance(plan, dict) and isinstance(plan.get("planned_for"), dict):
            return plan
    except ValueError:
        pass
    raise DataError(f"{name} is damaged.")
