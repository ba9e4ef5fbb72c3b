"""Conversations -> tokens, by the chat template that the tokenizer carries.

A template is a program in Jinja that makes a text of messages. Text and tokens are
those of transformers' `apply_chat_template`.
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import DataError
from data_pipeline.sources.conversations import ASSISTANT
from data_pipeline.tokens import completions
from data_pipeline.tokens.encoder import StoredTokenizer
from tfrecords import encoding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# With this tag a template says itself what the assistant writes.
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
# Unicode has no characters here.
_NON_CHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
_Rendered = tuple[str, list[tuple[int, int]]]


def encode(
    messages_json: bytes, tokenizer: StoredTokenizer, *, allow_special_tokens: bool
) -> tuple[bytes, np.ndarray, np.ndarray, int]:
    """Renders and encodes a conversation.

    Args:
      messages_json: a list of messages, as JSON.
      tokenizer: carries the template.
      allow_special_tokens: whether "<|endoftext|>" and the like in a message are the
        special tokens. If not, they are text, as they never are in the template.

    Returns:
      The text, UTF-8; uint32 [num_tokens]; the mask of `completions`, of the same
      shape; and the number of special tokens in messages that are text.

    Raises:
      DataError: the template fails, or does not tell what the assistant writes.
    """
    content = messages_json.decode()
    library = _load(tokenizer)
    added = library.added_tokens_decoder.values()
    as_text = [t.content for t in added if t.special and not allow_special_tokens]
    # A mark breaks such a token in two, and each part is encoded by itself.
    mark = next((c for c in _NON_CHARACTERS if c not in content), None)
    if mark is None:
        raise DataError(
            "A conversation must leave out one of Unicode's 32 non-characters from "
            f"U+FDD0 on. Received: {content:.100} …, which holds them all. Remove them."
        )
    messages = _break(json.loads(content), as_text, mark)
    text, spans = _render(library, messages)
    tokens, places, start = [], [], 0
    for part in text.split(mark):
        encoded = library.backend_tokenizer.encode(part, add_special_tokens=False)
        tokens += encoded.ids
        places += [(start + begin, start + end) for begin, end in encoded.offsets]
        start += len(part) + 1
    begins, ends = np.array(places, np.int64).reshape(-1, 2).T
    turns = [(begins < end) & (ends > begin) for begin, end in spans]
    turns = [turn for turn in turns if turn.any()]
    if not turns:
        raise DataError(
            "A conversation must have a token that the assistant writes. Received: "
            f"{content:.100} …, of which the chat template makes {text!r:.100}."
        )
    mask = np.zeros(len(tokens), completions.MASK_DTYPE)
    for turn in turns:
        mask[mask > 0] = completions.EARLIER_TURN
        mask[turn] = completions.COMPLETION
    plain = text.replace(mark, "").encode()
    return plain, np.array(tokens, np.uint32), mask, text.count(mark)


def _break(value: Any, tokens: Sequence[str], mark: str) -> Any:
    """Puts a mark into the special tokens of all texts of a message.

    Raises:
      DataError: a text holds a token of one character.
    """
    if isinstance(value, list):
        return [_break(item, tokens, mark) for item in value]
    if isinstance(value, dict):
        return {
            _break(key, tokens, mark): _break(item, tokens, mark)
            for key, item in value.items()
        }
    if not isinstance(value, str):
        return value
    for token in tokens:
        if len(token) == 1 and token in value:
            raise DataError(
                f"A message must not hold {token!r}, which cannot be told from the "
                f"special token. Received: {value:.100!r}. Change the message, or set "
                "`--config.data.allow_special_tokens`."
            )
        value = value.replace(token, token[0] + mark + token[1:])
    return value


@functools.lru_cache(maxsize=1)
def _load(tokenizer: StoredTokenizer) -> "PreTrainedTokenizerFast":
    library = encoding.load_tokenizer(tokenizer.path.rpartition("/")[0])
    library.backend_tokenizer.post_processor = None  # it would move offsets
    return library


def _refuse_date(_: str) -> str:
    raise ValueError(
        "it writes the date of today, and records would differ by the day: write a "
        "date into the template"
    )


def _render(
    tokenizer: "PreTrainedTokenizerFast", messages: list[dict[str, Any]]
) -> _Rendered:
    """Returns the text, and where in it the assistant's turns begin and end.

    Raises:
      DataError: the template fails, or does not tell what the assistant writes.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template()
    # It returns a pair, and is annotated as if it returned a string.
    render: Callable[..., Any] = render_jinja_template

    def apply(count: int, **options: bool) -> _Rendered:
        try:
            (text,), spans = render(
                [messages[:count]],
                chat_template=template,
                strftime_now=_refuse_date,
                **options,
                **tokenizer.special_tokens_map,
            )
        except Exception as error:  # of whatever class: the template is a program
            raise DataError(
                "The tokenizer's chat template must render each conversation, and "
                "without {% generation %} tags also its beginnings. Received: "
                f"{messages!r:.200}, whose first {count} messages fail with: {error}. "
                "Correct the conversation or the template."
            ) from error
        return text, spans[0] if spans else []

    is_tagged = bool(_GENERATION.search(template))
    text, spans = apply(len(messages), return_assistant_tokens_mask=is_tagged)
    for number, message in enumerate(messages):
        if is_tagged or message["role"] != ASSISTANT:
            continue
        before, _ = apply(number, add_generation_prompt=True)
        turn, _ = apply(number + 1)
        if not (text.startswith(turn) and turn.startswith(before)):
            raise DataError(
                "The chat template must tell what the assistant writes. Received one "
                f"by which the text of the first {number + 1} messages of "
                f"{messages!r:.200} is not how the whole begins. Put "
                "{% generation %} and {% endgeneration %} around it in the template."
            )
        spans.append((len(before), len(turn)))
    return text, spans
