"""Fits a prompt and its completion into a record."""

import numpy as np

MASK_DTYPE = np.dtype("u1")


def fit(
    prompt: np.ndarray, completion: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Joins the tokens of both, and cuts off what no record has room for.

    The prompt's beginning goes first, but for its last token; then the completion's
    end. So the first token of the completion always has something before it.

    Args:
      prompt: of at least one token.
      completion: of at least one token.
      length: tokens of a record, at least 2.

    Returns:
      The tokens, at most `length`, and uint8 of the same shape: 1 of the completion.
    """
    num_kept = min(len(prompt), max(length - len(completion), 1))
    tokens = np.concatenate([prompt[len(prompt) - num_kept :], completion])[:length]
    return tokens, (np.arange(len(tokens)) >= num_kept).astype(MASK_DTYPE)
