"""Settings of the choice of tokens, checked before TensorFlow is imported."""

import dataclasses
import math

from configs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the choice of tokens, and of where a text ends.

    Attributes:
      max_new_tokens: tokens to add; fewer where end-of-text comes first.
      temperature: divides the logits; 0 always takes the likeliest token.
      top_k: sample among so many of the likeliest tokens; 0: among all.
      top_p: sample among the likeliest tokens that hold this probability together.
      min_p: sample among tokens at least so likely, times the likeliest; 0: all.
      typical_p: sample among the tokens of the most typical surprise that hold this
        probability together.
      repetition_penalty: divides positive logits of tokens that the text contains, and
        multiplies negative ones.
      no_repeat_ngram_size: no sequence of so many tokens comes twice; 0: any may.
      min_new_tokens: end-of-text does not come before.
      num_beams: above 1, beam search, without sampling.
      bad_words: texts that must not appear.
      stop: texts before which a continuation ends.
      truncate: as one more of them, also with beams, whose text is cut at their end.
    """

    max_new_tokens: int = 50
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    num_beams: int = 1
    bad_words: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    truncate: str = ""

    def check(self, num_return_sequences: int) -> None:
        """Raises UserError where settings are out of range, or exclude each other."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, tuple):
                if "" in value:
                    raise UserError(f"`--{name}` must not be empty.")
            elif not isinstance(value, str) and not math.isfinite(value):
                raise UserError(
                    f"`--{name}` must be a finite number. Received: {value}."
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
