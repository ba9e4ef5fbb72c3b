"""Cuts texts into rows of tokens, of which the last are scored."""

import dataclasses
from collections.abc import Callable

import numpy as np

from configs.errors import DataError


@dataclasses.dataclass(frozen=True)
class Row:
    """Tokens of which the last `num_scored` are scored.

    The last token is only predicted: a row has at most one more than the positions.
    """

    tokens: list[int]
    num_scored: int

    @property
    def context(self) -> list[int]:
        """The tokens that are not scored, at least one."""
        return self.tokens[: -self.num_scored]


@dataclasses.dataclass(frozen=True)
class Score:
    """Of the scored tokens of a row: float32 log-likelihoods in nats, and bool."""

    log_likelihoods: np.ndarray
    is_likeliest: np.ndarray

    @property
    def total(self) -> float:
        """Log-likelihood of all of them."""
        return float(np.sum(self.log_likelihoods, dtype=np.float64))


@dataclasses.dataclass(frozen=True)
class RowMaker:
    """Makes rows of texts, for one model.

    Attributes:
      encode: text -> token ids.
      start: token before a text that has no context.
      num_positions: of the model.
    """

    encode: Callable[[str], list[int]]
    start: int
    num_positions: int

    def joint(self, context: str, continuation: str) -> Row:
        """Scores a continuation; both are encoded as one text.

        White space at the end of the context belongs to the continuation, as it does
        in the tokens of GPT-2.
        """
        stem = context.rstrip()
        tokens = self.encode(context + continuation)
        num_context = len(self.encode(stem)) if stem else 0
        num_scored = len(tokens) - num_context
        if not num_context and tokens[:1] != [self.start]:
            tokens = [self.start, *tokens]
        return self._row(tokens, min(num_scored, len(tokens) - 1))

    def separate(self, context: str, continuation: str) -> Row:
        """Scores a continuation; each is encoded for itself."""
        scored = self.encode(continuation)
        return self._row([*self.encode(context), *scored], len(scored))

    def rolling(self, text: str) -> list[Row]:
        """Scores every token of a text once, after as many as there is room for.

        Windows do not overlap, but for the last, which is as long as the others.
        """
        tokens = [self.start, *self.encode(text)]
        length, rows = self.num_positions, []
        for begin in range(1, len(tokens), length):
            end = min(begin + length, len(tokens))
            row = tokens[max(end - length - 1, 0) : end]
            rows.append(Row(row, end - begin))
        return rows

    def _row(self, tokens: list[int], num_scored: int) -> Row:
        """Drops tokens from the left of the context, where there are too many."""
        if not 1 <= num_scored <= self.num_positions:
            raise DataError(
                "What a benchmark scores must have from 1 token to as many as the "
                f"model has positions, {self.num_positions}. Received: {num_scored}, "
                "by the model's tokenizer. Leave the example out, or evaluate a model "
                "with another tokenizer or a longer context."
            )
        return Row(tokens[-(self.num_positions + 1) :], num_scored)
