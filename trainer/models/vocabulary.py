"""Gives a model a row for each token of another tokenizer."""

import json
from typing import Any

import tf_keras

from tfrecords import encoding
from trainer.models.architecture import Architecture


def transplant(
    architecture: Architecture, model: tf_keras.Model, tokenizers: tuple[str, str]
) -> tf_keras.Model:
    """Returns the model with the rows of another vocabulary.

    A token that both tokenizers have keeps its row. Another one's is the mean of the
    rows of the pieces that the old tokenizer cuts its text into, or of all rows where
    there are none.

    Args:
      architecture: of the model.
      model: with the rows of the old tokenizer.
      tokenizers: where the old one and the new one load from.

    Raises:
      UserError: a tokenizer does not load.
    """
    old, new = map(architecture.load_tokenizer, tokenizers)
    size = model.config.vocab_size
    rows = [[i for i in ids if i < size] for ids in pieces(old, new)]
    extended = architecture.resize_vocabulary(model, rows)
    for name in ("bos_token_id", "eos_token_id"):
        setattr(extended.config, name, new.eos_token_id)
    return extended


def pieces(old: Any, new: Any) -> list[list[int]]:
    """Returns, for each id of a tokenizer, the ids of another for the same text.

    Args:
      old: tokenizer whose ids are returned.
      new: tokenizer whose ids they are returned for.
    """
    old_texts, texts = _texts(old), _texts(new)
    ids_of_text = {text: index for index, text in reversed(old_texts.items())}
    if old.eos_token_id is not None:
        ids_of_text[texts[new.eos_token_id]] = old.eos_token_id
    settings = old.backend_tokenizer.to_str()
    encode = encoding.encoder(settings, allow_special_tokens=True)
    unknown = encoding.unknown_id(json.loads(settings)["model"])
    encoded = dict(zip(texts, encode([*texts.values()]), strict=True))
    old_ids = old.get_vocab()
    result: list[list[int]] = [[] for _ in range(max(texts) + 1)]
    for token, index in new.get_vocab().items():
        text, same = texts[index], old_ids.get(token)
        if same is not None and old_texts[same] == text:
            result[index] = [same]
        elif text in ids_of_text:
            result[index] = [ids_of_text[text]]
        elif not text.startswith(_PART_OF_CHARACTER):
            result[index] = [i for i in encoded[index] if i != unknown]
    return result


# Stands before a token that is no text by itself.
_PART_OF_CHARACTER = "\ufffd"


def _texts(tokenizer: Any) -> dict[int, str]:
    """Returns what each token adds to a text that it stands in."""
    decode = encoding.decoder(tokenizer.backend_tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    alone = dict(zip(tokens, decode([[index] for index in tokens]), strict=True))
    # After a word, if there is one: a space that begins the token is dropped at the
    # start of a text.
    word = [index for index, text in sorted(alone.items()) if text.isalnum()][:1]
    both = decode([[*word, index] for index in tokens])
    before = "".join(alone[index] for index in word)
    texts = {
        index: text.removeprefix(before)
        for index, text in zip(tokens, both, strict=True)
    }
    for index, text in texts.items():
        if "\ufffd" in text:
            texts[index] = _PART_OF_CHARACTER + tokens[index]
    added = tokenizer.added_tokens_decoder
    return texts | {index: token.content for index, token in added.items()}
