"""Plans of `trainer.plan`: `WORKDIR/plans/TPU_TYPE.json`."""

from typing import Any

from configs.errors import DataError
from tfrecords.storage import files
from trainer.run_dir import json_files, layout


def path(workdir: str, tpu_type: str) -> str:
    """Returns where the plan for a TPU type, such as "v3-8", is kept."""
    return files.join(workdir, f"{layout.PLANS}/{tpu_type or 'unknown'}.json")


def save(workdir: str, plan: dict[str, Any]) -> None:
    """Writes a plan; replaces an earlier one for the same TPU type."""
    json_files.write(path(workdir, plan["tpu_type"]), plan)


def save_picture(workdir: str, plan: dict[str, Any], svg: str) -> None:
    """Writes the picture of a tuned plan beside it."""
    name = path(workdir, plan["tpu_type"]).removesuffix(".json") + ".svg"
    files.write(name, svg.encode())


def load(workdir: str, tpu_type: str) -> dict[str, Any] | None:
    """Returns the plan for a TPU type; None: there is no such plan.

    Raises:
      DataError: the plan is damaged.
    """
    name = path(workdir, tpu_type)
    if not files.exists(name):
        return None
    plan = json_files.read(name)
    if not isinstance(plan.get("planned_for"), dict):
        raise DataError(
            f"{name} is damaged: it does not say what it was planned for. Make it "
            f"again with `python -m trainer.plan --workdir={workdir}`."
        )
    return plan


def load_all(workdir: str) -> list[dict[str, Any]]:
    """Returns the plans for all TPU types, by name.

    Raises:
      DataError: a plan is damaged.
    """
    return json_files.read_folder(files.join(workdir, layout.PLANS))
