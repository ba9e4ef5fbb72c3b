"""The text of a row while it grows: what is shown of it, and where it ends."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerFast

# What stands for bytes that are not yet a whole character.
_INCOMPLETE = "\ufffd"


class Continuation:
    """A prompt and its new tokens, as text.

    Args:
      tokenizer: of the model.
      prompt: its tokens, as far as they are shown.
      max_new_tokens: the most new tokens.
      stop: texts before which it ends. They are looked for behind the prompt.
      shows_prompt: whether the text begins with the prompt.
      write: receives the text piece by piece; None: nobody does.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        stop: Sequence[str] = (),
        shows_prompt: bool = True,
        write: Callable[[str], object] | None = None,
    ):
        self._tokenizer = tokenizer
        self._prompt = list(prompt)
        self._max_new_tokens = max_new_tokens
        self._stop = stop
        self._write = write
        self.new: list[int] = []
        self.is_finished = False
        self._begin = len(self._decode())
        self._num_written = 0 if shows_prompt else self._begin
        self._shown_from = self._num_written
        self._write_up_to(self._decode(), self._begin)

    def add(self, token: int) -> bool:
        """Adds a new token; returns whether the text has ended."""
        if self.is_finished:
            return True
        self.new.append(token)
        ends = token == self._tokenizer.eos_token_id
        self.is_finished = ends or len(self.new) >= self._max_new_tokens
        if not (self._stop or self._write):
            return self.is_finished
        text = self._decode()
        end, stops = self._end(text)
        self.is_finished |= stops
        if not self.is_finished:
            # What is held back may be the beginning of a stop text or of a character.
            held = max(map(len, self._stop), default=1) - 1
            end = max(self._begin, len(text) - held)
            end = len(text[:end].rstrip(_INCOMPLETE))
        self._write_up_to(text, end)
        return self.is_finished

    @property
    def text(self) -> str:
        """The text so far, up to its end."""
        text = self._decode()
        end, _ = self._end(text)
        return text[self._shown_from : end]

    def _end(self, text: str) -> tuple[int, bool]:
        """Returns where a text ends, and whether a stop text ends it."""
        places = [text.find(stop, self._begin) for stop in self._stop]
        places = [place for place in places if place >= 0]
        return min(places, default=len(text)), bool(places)

    def _write_up_to(self, text: str, end: int) -> None:
        if self._write:
            try:
                # An empty text, too: only writing notices a closed connection.
                self._write(text[self._num_written : end])
            except ConnectionError:
                self.is_finished = True
            self._num_written = max(end, self._num_written)

    def _decode(self) -> str:
        end = self._tokenizer.eos_token_id
        new = self.new[: self.new.index(end)] if end in self.new else self.new
        return self._tokenizer.decode(
            self._prompt + new,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
