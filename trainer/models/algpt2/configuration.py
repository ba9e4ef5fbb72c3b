"""The configuration of an ALGPT2: GPT-2's, and the size of the token embedding."""

from typing import Any

from transformers import GPT2Config

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
    """Returns the shape that a config's own fields describe."""
    shape = configuration.configure(config, vocabulary_size, **ids)
    return ALGPT2Config(config.embedding_size, **_own(shape))


def load_configuration(checkpoint: str) -> ALGPT2Config:
    """Reads the config.json of an ALGPT2 that was exported as a GPT-2.

    The export does not say how large E was: it is the default, or the width of a
    smaller model.

    Raises:
      UserError: it cannot be read, or describes a network that is not GPT-2's.
    """
    shape = configuration.load_configuration(checkpoint)
    return ALGPT2Config(min(ModelConfig.embedding_size, shape.n_embd), **_own(shape))


def gpt2_configuration(shape: ALGPT2Config) -> GPT2Config:
    """Returns the configuration of the GPT-2 that computes the same."""
    values = _own(shape)
    del values["embedding_size"]
    return GPT2Config(**values)


def _own(shape: GPT2Config) -> dict[str, Any]:
    return {k: v for k, v in shape.to_dict().items() if k != "model_type"}
