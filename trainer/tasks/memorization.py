"""Detects when a model memorizes its training text."""

# Fewer tokens for each parameter than this are too few. A pretrained model needs less
# text, but small corpora overfit it, too.
_TOKENS_PER_PARAMETER = 0.25
_TOKENS_PER_TRAINED_PARAMETER = 0.001
# Training losses below which a rising validation loss means memorization.
_SUSPECT_LOSS = 1.10  # perplexity 3
_CERTAIN_LOSS = 0.41  # perplexity 1.5


def expected(num_tokens: int, parameter_count: int, *, pretrained: bool) -> str:
    """Returns a warning where the corpus is small for the model, else an empty string.

    Args:
      num_tokens: of the training split.
      parameter_count: of the model.
      pretrained: whether it starts from trained weights.
    """
    enough = _TOKENS_PER_TRAINED_PARAMETER if pretrained else _TOKENS_PER_PARAMETER
    per_parameter = num_tokens / parameter_count
    if per_parameter >= enough:
        return ""
    return (
        f"{num_tokens:,} tokens are {per_parameter:.2g} for each parameter: the model "
        "can memorize them. Use a smaller model or more text."
    )


def level(
    training_loss: float, validation_loss: float, lowest_validation_loss: float
) -> int:
    """Returns the level of memorization: 0 none, 1 a warning, 2 an alarm.

    Args:
      training_loss: mean since the last evaluation, in nats per token.
      validation_loss: of this evaluation.
      lowest_validation_loss: of the run so far.
    """
    if validation_loss <= lowest_validation_loss:
        return 0
    return (training_loss < _SUSPECT_LOSS) + (training_loss < _CERTAIN_LOSS)
