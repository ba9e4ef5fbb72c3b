"""The configuration of an ALGPT2: GPT-2's, and the size of the token embedding."""

from typing import Any

from transformers import GPT2Config

from configs.errors import UserError
from configs.schema import ModelConfig
from trainer.models.gpt2 import configuration


class ALGPT2Config(GPT2Config):
    """GPT-2's configuration with the columns E of the token embedding.

    Args:
      embedding_size: E.
      **values: of GPT2Config.
    """

    model_type = "algpt2"

    def __init__(self, embedding_size: int = 128, **values: Any):
        super().__init__(**values)
        self.embedding_size = embedding_size


def configure(config: ModelConfig, vocabulary_size: int, **ids: int) -> ALGPT2Config:
    """Returns the shape that a config's own fields describe.

    Raises:
      UserError: the token embedding is wider than the model, which saves nothing.
    """
    if config.embedding_size > config.n_embd:
        raise UserError(
            "`model.embedding_size` must be at most `model.n_embd`. Received: "
            f"{config.embedding_size} and {config.n_embd}. Lower the first, or use "
            "`model.architecture=gpt2`."
        )
    shape = configuration.configure(config, vocabulary_size, **ids)
    return ALGPT2Config(config.embedding_size, **_own(shape))


def load_configuration(checkpoint: str) -> ALGPT2Config:
    """Reads the config.json of an ALGPT2 that was exported as a GPT-2.

    Raises:
      UserError: it cannot be read, or is not that of such an export.
    """
    shape = configuration.load_configuration(checkpoint, also=["embedding_size"])
    size = getattr(shape, "embedding_size", None)
    if type(size) is not int or size < 1:
        raise UserError(
            f"The config.json of {checkpoint} must have the `embedding_size` of an "
            f"exported ALGPT2. Received: {size!r}. Use `model.architecture=gpt2`."
        )
    return ALGPT2Config(**_own(shape))


def gpt2_configuration(shape: ALGPT2Config) -> GPT2Config:
    """Returns the configuration of the GPT-2 that computes the same.

    It keeps `embedding_size`, which GPT-2 does not read, for the way back.
    """
    return GPT2Config(**_own(shape))


def _own(shape: GPT2Config) -> dict[str, Any]:
    return {k: v for k, v in shape.to_dict().items() if k != "model_type"}
