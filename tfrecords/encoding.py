"""Text -> token ids: the same for a dataset, a prompt and a sample."""

from collections.abc import Callable, Sequence

import tokenizers


def encoder(
    tokenizer_json: str, *, allow_special_tokens: bool
) -> Callable[[Sequence[str]], list[list[int]]]:
    """Returns a function that encodes texts, each by itself and whole.

    It adds nothing: a post-processor's special tokens, such as [CLS] and [SEP], are
    not part of a text.

    Args:
      tokenizer_json: content of `tokenizer.json`.
      allow_special_tokens: whether "<|endoftext|>" and the like inside a text are the
        special tokens. If not, they are text.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = not allow_special_tokens
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: Sequence[str]) -> list[list[int]]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    return encode
