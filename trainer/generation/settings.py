"""Settings of the choice of tokens, checked before TensorFlow is imported."""

import dataclasses
import math

from configs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the choice of tokens.

    Attributes:
      max_new_tokens: tokens to add; fewer where end-of-text comes first.
      temperature: divides the logits; 0 always takes the likeliest token.
      top_k: sample among so many of the likeliest tokens; 0: among all.
      top_p: sample among the likeliest tokens that hold this probability together.
      repetition_penalty: divides positive logits of tokens that the text contains, and
        multiplies negative ones.
      num_beams: above 1, beam search, without sampling.
    """

    max_new_tokens: int = 50
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    num_beams: int = 1

    def check(self, num_return_sequences: int) -> None:
        """Raises UserError where a setting is not finite, or two exclude each other."""
        for name, value in dataclasses.asdict(self).items():
            if not math.isfinite(value):
                raise UserError(
                    f"`--{name}` must be a finite number. Received: {value}."
                )
        samples = (self.temperature, self.top_k, self.top_p) != (1.0, 0, 1.0)
        if self.num_beams > 1 and samples:
            raise UserError(
                "`--num_beams` searches and does not sample: it excludes "
                "`--temperature`, `--top_k` and `--top_p`. Received: "
                f"{self.num_beams} beams and sampling. Leave either out."
            )
        at_most = self.num_beams if self.num_beams > 1 else int(self.greedy) or None
        if at_most and num_return_sequences > at_most:
            raise UserError(
                "`--num_return_sequences` must be at most `--num_beams`, and 1 with "
                "`--temperature=0`, which gives the same each time. Received: "
                f"{num_return_sequences}. Use {at_most}, or sample."
            )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0.0
