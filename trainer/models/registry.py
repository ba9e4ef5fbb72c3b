"""Names the architectures: `model.architecture` -> `Architecture`.

A name stands for a module that has an `ARCHITECTURE`. The module is imported when it is
asked for, so that a program can check a name before it imports TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING

from configs.errors import UserError

if TYPE_CHECKING:
    from trainer.models.architecture import Architecture

MODULES = {
    "gpt2": "trainer.models.gpt2.architecture",
    "algpt2": "trainer.models.algpt2.architecture",
    "xlnet": "trainer.models.xlnet.architecture",
}


def check(name: str) -> None:
    """Raises UserError where no architecture has that name."""
    if name not in MODULES:
        raise UserError(
            f"`model.architecture` must be one of {', '.join(MODULES)}. Received: "
            f"{name!r}."
        )


def get(name: str) -> "Architecture":
    """Returns the architecture of that name; raises as `check` does."""
    check(name)
    return importlib.import_module(MODULES[name]).ARCHITECTURE


def of_checkpoint(checkpoint: str) -> "Architecture":
    """Returns the architecture of a Hugging Face folder or name, by its `model_type`.

    Without one that is known, it is GPT-2, whose loading says what is wrong.
    """
    from trainer.models.config_json import read_config

    model_type = read_config(checkpoint, "GPT-2").get("model_type")
    return get(model_type if model_type in MODULES else "gpt2")
