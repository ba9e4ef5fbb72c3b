"""Judges whether a validation loss is too good to be true, by the text alone.

A table of bigrams that is made from the very text that it is scored on has the loss
H(token | the one before), the text's bigram entropy. No model that knows one token can
be better. Those that know more are, but stay above a quarter of it: on WikiText-2 it is
3.35 nats, GPT-2 XL reaches 2.51 (see `evaluation/published.json`), and a large masked
model, which sees both sides, 1.17 on its text (Devlin et al., "BERT" (2019), table 6).
A model that sees what it is to predict goes to 0 within some hundred steps.
"""

from collections.abc import Mapping

import numpy as np
from absl import logging

from tfrecords import schema
from tfrecords.windows import Windows

# Of the bigram entropy.
_SHARE = 0.25
# Enough to tell; few enough to be read in no time. Of a shorter text the bigram entropy
# is lower, and so is what is plausible.
_MAX_TOKENS = 2**18
_BATCH_WINDOWS = 64


def lowest_loss(windows: Windows) -> float:
    """Returns the lowest plausible loss on a split, in nats per token.

    Args:
      windows: of the split, which do not overlap.
    """
    dataset = windows.batches(
        global_batch_size=_BATCH_WINDOWS, batch_size=_BATCH_WINDOWS
    )
    batches, num_tokens = [], 0
    for batch in dataset.as_numpy_iterator():
        batches.append(batch)
        num_tokens += int(batch[schema.LENGTH].sum())
        if num_tokens >= _MAX_TOKENS:
            break
    unigram, bigram = entropies(batches)
    logging.info(
        "the validation text has a unigram entropy of %.3f and a bigram entropy of "
        "%.3f nats per token",
        unigram,
        bigram,
    )
    return _SHARE * bigram


def entropies(batches: list[Mapping[str, np.ndarray]]) -> tuple[float, float]:
    """Returns the entropy of a token, and that of a token after a known one, in nats.

    Args:
      batches: `tokens` int32 [B, T] and `length` int32 [B], the real tokens of a row.
    """
    firsts, seconds = [], []
    for batch in batches:
        tokens, length = batch[schema.TOKENS], batch[schema.LENGTH]
        is_pair = np.arange(1, tokens.shape[1]) < length[:, None]
        firsts.append(tokens[:, :-1][is_pair])
        seconds.append(tokens[:, 1:][is_pair])
    first = np.concatenate(firsts).astype(np.int64)
    second = np.concatenate(seconds)
    return _entropy(second), _entropy(first << 32 | second) - _entropy(first)


def _entropy(values: np.ndarray) -> float:
    counts = np.unique(values, return_counts=True)[1]
    shares = counts / max(len(values), 1)
    return float(-np.sum(shares * np.log(shares)))
