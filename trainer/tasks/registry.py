"""Names the tasks: `training.task` -> `Task`.

A name stands for a module that has a `TASK`. The module is imported when it is asked
for, so that a program can check a name before it imports TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING

from configs.errors import UserError

if TYPE_CHECKING:
    from trainer.tasks.task import Task

MODULES = {
    "causal_lm": "trainer.tasks.causal_lm",
    "classification": "trainer.tasks.classification",
    "permutation_lm": "trainer.tasks.permutation_lm",
}


def check(name: str) -> None:
    """Raises UserError where no task has that name."""
    if name not in MODULES:
        raise UserError(
            f"`training.task` must be one of {', '.join(MODULES)}. Received: {name!r}."
        )


def get(name: str) -> "Task":
    """Returns the task of that name; raises as `check` does."""
    check(name)
    return importlib.import_module(MODULES[name]).TASK
