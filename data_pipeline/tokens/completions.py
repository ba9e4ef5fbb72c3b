"""Fits what is there already, and what is learnt, into a record."""

import numpy as np

MASK_DTYPE = np.dtype("u1")
# In a mask: what is learnt. An earlier turn of a conversation is no completion whose
# exact match is counted.
COMPLETION, EARLIER_TURN = 1, 2


def fit(
    tokens: np.ndarray, mask: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts off what no record has room for.

    The beginning goes first, up to the token before the completion; then the end. So
    the first token of a completion that follows a prompt has something before it.

    Args:
      tokens: of a prompt and a completion, or of a conversation.
      mask: of the same shape: COMPLETION, EARLIER_TURN, or 0.
      length: tokens of a record, at least 2.

    Returns:
      What is left of both, at most `length`.
    """
    start = int(np.argmax(mask == COMPLETION))  # of the completion
    num_kept = min(start, max(length - (len(tokens) - start), 1))
    kept = slice(start - num_kept, start - num_kept + length)
    return tokens[kept], mask[kept]
