"""Settings of the choice of tokens, checked before TensorFlow is imported.

What the command line and the web page know of a setting is here.
"""

import dataclasses
from typing import Any, NamedTuple

from absl import flags

from configs.errors import UserError

_SMALLEST_TEMPERATURE = 1e-6
_TOO_LARGE = 3.4e38  # for float32


class Number(NamedTuple):
    """A number that the user chooses: its default, what it does, and its range."""

    default: float
    help: str
    lowest: float
    highest: float | None = None

    @property
    def parser(self) -> Any:
        """What reads it from a text, as a flag's."""
        is_whole = isinstance(self.default, int)
        kind: Any = flags.IntegerParser if is_whole else flags.FloatParser
        return kind(self.lowest, self.highest)


def _number(*number: Any) -> Any:
    value = Number(*number)
    return dataclasses.field(default=value.default, metadata={"number": value})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the choice of tokens, and of where a text ends.

    Numbers have the default, the meaning, and the range of their flags.

    Attributes:
      bad_words: texts that must not appear.
      stop: texts before which a continuation ends.
      truncate: as one more of them, also with beams, whose text is cut at their end.
    """

    max_new_tokens: int = _number(50, "tokens to add, at most", 1)
    min_new_tokens: int = _number(0, "end-of-text does not come before", 0)
    temperature: float = _number(1.0, "0 always takes the likeliest token", 0.0)
    top_k: int = _number(
        0, "sample among this many of the likeliest tokens; 0: all", 0, 2**31 - 1
    )
    top_p: float = _number(
        1.0, "sample among the likeliest tokens, up to this probability", 0.0, 1.0
    )
    min_p: float = _number(
        0.0, "sample among tokens this likely, relative to the likeliest", 0.0, 1.0
    )
    typical_p: float = _number(
        1.0, "sample among the most typical tokens, up to this probability", 0.0, 1.0
    )
    repetition_penalty: float = _number(
        1.0, "above 1, tokens that are there become less likely", 0.01
    )
    no_repeat_ngram_size: int = _number(
        0, "no sequence of this many tokens comes twice; 0: any may", 0, 1024
    )
    num_beams: int = _number(1, "more than 1: beam search, no sampling", 1)
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    truncate: str = ""

    def check(self, num_return_sequences: int) -> None:
        """Raises UserError where settings are out of range, or exclude each other."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, tuple):
                if "" in value:
                    raise UserError(f"`--{name}` must not be empty.")
            elif not isinstance(value, str) and not abs(value) < _TOO_LARGE:
                raise UserError(
                    f"`--{name}` must be a number that float32 holds, of less than "
                    f"{_TOO_LARGE}. Received: {value}."
                )
        if 0 < self.temperature < _SMALLEST_TEMPERATURE:
            raise UserError(
                f"`--temperature` must be 0, or at least {_SMALLEST_TEMPERATURE}: a "
                f"score divided by less overflows. Received: {self.temperature}. Use 0."
            )
        if not self.typical_p > 0:
            raise UserError(
                f"`--typical_p` must be above 0. Received: {self.typical_p}. Use 1 to "
                "sample among all tokens."
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise UserError(
                "`--min_new_tokens` must be at most `--max_new_tokens`. Received: "
                f"{self.min_new_tokens} and {self.max_new_tokens}."
            )
        self._check_beams()
        at_most = self.num_beams if self.num_beams > 1 else int(self.greedy) or None
        if at_most and num_return_sequences > at_most:
            raise UserError(
                "`--num_return_sequences` must be at most `--num_beams`, and 1 with "
                "`--temperature=0`, which gives the same each time. Received: "
                f"{num_return_sequences}. Use {at_most}, or sample."
            )

    def _check_beams(self) -> None:
        sampling = ("temperature", "top_k", "top_p", "min_p", "typical_p")
        changed = [n for n in sampling if getattr(self, n) != getattr(Settings, n)]
        if self.num_beams > 1 and changed:
            flags = ", ".join(f"`--{name}`" for name in changed)
            raise UserError(
                f"`--num_beams` searches and does not sample: it excludes {flags}. "
                f"Received: {self.num_beams} beams and sampling. Leave either out."
            )
        if self.num_beams > 1 and self.stop:
            raise UserError(
                "`--num_beams` excludes `--stop`: a beam's text is known at its end. "
                "Use `--truncate`, or leave `--num_beams` out."
            )

    @property
    def ends(self) -> tuple[str, ...]:
        """The texts before which a continuation ends."""
        return (*self.stop, self.truncate) if self.truncate else self.stop

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0


NUMBERS: dict[str, Number] = {
    **{
        field.name: field.metadata["number"]
        for field in dataclasses.fields(Settings)
        if "number" in field.metadata
    },
    "seed": Number(0, "the same seed gives the same text", 0, 2**31 - 1),
}
# What the other entries mean.
HELP = {
    "bad_words": "text that must not appear",
    "stop": "text before which a continuation ends",
    "padding_text": "text before each prompt, which is not shown",
    "document": "the start of a document precedes the prompt",
}
