"""Conversations -> tokens, by the chat template that the tokenizer carries.

A template is a program in Jinja that makes a text of messages. Text and tokens are
those of transformers' `apply_chat_template`.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable
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
    mark = next(character for character in _NON_CHARACTERS if character not in content)
    messages = json.loads(content)
    for message, token in itertools.product(messages, as_text):
        for key, value in message.items():
            if isinstance(value, str):
                message[key] = value.replace(token, token[0] + mark + token[1:])
    try:
        text, spans = _render(library, messages)
    except Exception as error:  # of whatever class: the template is a program
        raise DataError(
            "The tokenizer's chat template must render each conversation, and tell "
            f"what the assistant writes. Received: {content:.100} …, which fails with: "
            f"{error}. Correct the conversation or the template."
        ) from error
    tokens, places, start = [], [], 0
    for part in text.split(mark):
        encoded = library.backend_tokenizer.encode(part, add_special_tokens=False)
        tokens += encoded.ids
        places += [(start + begin, start + end) for begin, end in encoded.offsets]
        start += len(part) + 1
    begins, ends = np.array(places).T
    mask = np.zeros(len(tokens), completions.MASK_DTYPE)
    for begin, end in spans:
        mask[mask > 0] = completions.EARLIER_TURN
        mask[(begins < end) & (ends > begin)] = completions.COMPLETION
    plain = text.replace(mark, "").encode()
    return plain, np.array(tokens, np.uint32), mask, text.count(mark)


@functools.lru_cache(maxsize=1)
def _load(tokenizer: StoredTokenizer) -> "PreTrainedTokenizerFast":
    library = encoding.load_tokenizer(tokenizer.path.rpartition("/")[0])
    library.backend_tokenizer.post_processor = None  # it would move offsets
    return library


def _refuse_date(_: str) -> str:
    raise ValueError("it writes the date of today: records would differ by the day")


def _render(
    tokenizer: "PreTrainedTokenizerFast", messages: list[dict[str, Any]]
) -> _Rendered:
    """Returns the text, and where in it the assistant's turns begin and end."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = tokenizer.get_chat_template()
    # It returns a pair, and is annotated as if it returned a string.
    render: Callable[..., Any] = render_jinja_template

    def apply(count: int, **options: bool) -> _Rendered:
        (text,), spans = render(
            [messages[:count]],
            chat_template=template,
            strftime_now=_refuse_date,
            **options,
            **tokenizer.special_tokens_map,
        )
        return text, spans[0] if spans else []

    is_tagged = bool(_GENERATION.search(template))
    text, spans = apply(len(messages), return_assistant_tokens_mask=is_tagged)
    for number, message in enumerate(messages):
        if is_tagged or message["role"] != ASSISTANT:
            continue
        before, _ = apply(number, add_generation_prompt=True)
        turn, _ = apply(number + 1)
        if not (text.startswith(turn) and turn.startswith(before)):
            raise ValueError(
                f"the text of its first {number + 1} messages is not how the whole "
                "begins. Put {% generation %} and {% endgeneration %} around what the "
                "assistant writes in the template"
            )
        spans.append((len(before), len(turn)))
    spans = [(begin, end) for begin, end in spans if begin < end]
    if not spans:
        raise ValueError("the text has nothing that the assistant writes")
    return text, spans
