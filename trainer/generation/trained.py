"""Samplers of the trained model that the command line names."""

import functools

from configs.errors import UserError
from trainer.checkpoints import pretrained
from trainer.generation.sampling import Sampler
from trainer.models import create


def load(
    workdir: str,
    step: int,
    checkpoint: str,
    *,
    program: str,
    padding_text: str | None = None,
) -> functools.partial[Sampler]:
    """Loads a model; returns `Sampler` with its arguments that are the model's.

    Args:
      workdir: of a run; empty: load `checkpoint`.
      step: of the run's checkpoint; 0: the newest.
      checkpoint: a Hugging Face folder or name.
      program: that needs it.
      padding_text: default of `Sampler`'s; None: that of the run.

    Raises:
      UserError: the model does not load, or generates no text.
      DataError: the workdir has no checkpoint.
    """
    trained = pretrained.load(workdir, step, checkpoint)
    if trained.task == "classification":
        raise UserError(
            f"`{program}` needs a language model. Received: a classifier, "
            f"{trained.name}. Use `trainer.predict`."
        )
    return functools.partial(
        Sampler,
        trained.architecture,
        trained.architecture.as_transformers(trained.model),
        create.load_tokenizer(trained.architecture, trained.tokenizer, trained.model),
        start_token=trained.start_token,
        padding_text=trained.padding_text if padding_text is None else padding_text,
    )
