"""Text -> token ids: the same for a dataset, a prompt and a sample.

Also loads the tokenizer of a folder, of whatever family.
"""

import functools
import json
import os
import tempfile
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from tfrecords.storage import files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Files that a tokenizer loads from, in the order in which they are looked for.
SENTENCE_PIECE_FILES = (
    *("spiece.model", "sentencepiece.bpe.model"),
    *("sentencepiece.model", "tokenizer.model"),
)
TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "vocab.txt"),
    *SENTENCE_PIECE_FILES,
)
# The usual special tokens, by their names in transformers.
BERT_TOKENS = {
    "unk_token": "[UNK]",
    "sep_token": "[SEP]",
    "pad_token": "[PAD]",
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
_SENTENCE_PIECE_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "sep_token": "<sep>",
    "pad_token": "<pad>",
    "cls_token": "<cls>",
    "mask_token": "<mask>",
}


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


def decoder(tokenizer_json: str) -> Callable[[Sequence[Sequence[int]]], list[str]]:
    """Returns a function that decodes token ids, each text by itself.

    Args:
      tokenizer_json: content of `tokenizer.json`.
    """
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    return functools.partial(tokenizer.decode_batch, skip_special_tokens=False)


def load_tokenizer(
    source: str, *, special_tokens: bool = True
) -> "PreTrainedTokenizerFast":
    """Loads a tokenizer by the files that are there, whatever class they name.

    `tokenizer.json` is what the library `tokenizers` makes of it. Without it,
    `vocab.json` with `merges.txt` is GPT-2's byte-level BPE, `vocab.txt` is BERT's
    WordPiece, and `spiece.model` is SentencePiece. A post-processor that adds tokens
    is removed: readers of the saved tokenizer encode a prompt as documents are encoded.

    Args:
      source: a folder, a Hugging Face name, or gs://….
      special_tokens: whether special tokens that the settings name, or GPT-2's own, and
        that the vocabulary lacks, get new ids.

    Raises:
      Exception: of whatever class: there is no tokenizer that loads.
    """
    if files.is_remote(source):  # transformers reads no bucket
        with tempfile.TemporaryDirectory() as folder:
            for name in files.sizes_and_versions(source):
                if name.endswith((".json", ".txt", ".model", ".jinja")):
                    path = files.join(source, name)
                    files.download(path, os.path.join(folder, name))
            return load_tokenizer(folder, special_tokens=special_tokens)
    if path := _path(source, "tokenizer.json"):
        if not is_byte_level(_load_json(path)):
            backend = tokenizers.Tokenizer.from_file(path)
            return wrap(backend, _named_tokens(source) if special_tokens else {})
    elif not _path(source, "merges.txt"):
        if path := _path(source, "vocab.txt"):
            return _load_family(source, BERT_TOKENS, _word_piece(source, path))
        for name in SENTENCE_PIECE_FILES:
            if path := _path(source, name):
                backend = _sentence_piece(source, path)
                return _load_family(source, _SENTENCE_PIECE_TOKENS, backend)
    from transformers import GPT2TokenizerFast

    left_out = [] if special_tokens else ["bos_token", "eos_token", "unk_token"]
    names: dict[str, Any] = dict.fromkeys(left_out)
    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(source, **names)
    except TypeError as error:  # a path is None
        raise ValueError("it has none of them") from error
    _remove_post_processor(tokenizer.backend_tokenizer)
    return tokenizer


def is_byte_level(settings: dict[str, Any]) -> bool:
    """Returns whether a `tokenizer.json` is a byte-level BPE."""
    is_bpe = settings["model"].get("type", "BPE") == "BPE"
    return is_bpe and "ByteLevel" in json.dumps(settings["pre_tokenizer"])


def has_all_bytes(settings: dict[str, Any]) -> bool:
    """Returns whether a `tokenizer.json` is a byte-level BPE that knows every text."""
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    return is_byte_level(settings) and letters <= settings["model"]["vocab"].keys()


def unknown_id(model: dict[str, Any]) -> int:
    """Returns the id of the unknown token of a `tokenizer.json`'s model, or -1."""
    if model.get("type") == "Unigram":
        return -1 if model["unk_id"] is None else model["unk_id"]
    return model["vocab"].get(model.get("unk_token"), -1)


def wrap(
    backend: tokenizers.Tokenizer, special_tokens: dict[str, Any]
) -> "PreTrainedTokenizerFast":
    """Returns a tokenizer for transformers that encodes as `backend` does, and no more.

    Args:
      backend: is changed.
      special_tokens: their names in transformers -> tokens; or other settings.
    """
    from transformers import PreTrainedTokenizerFast

    _remove_post_processor(backend)
    # Without an unknown token, some fail on the first character that they lack.
    backend.encode("\U0010ffff")
    settings = json.loads(backend.to_str())["pre_tokenizer"] or {}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        # transformers overwrites it by its own default.
        add_prefix_space=settings.get("add_prefix_space", False),
        # By default also token_type_ids, which GPT-2 would add to the embeddings.
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **special_tokens,
    )


def word_piece_decoder() -> decoders.Decoder:
    """Returns WordPiece's decoder, which puts no space into Chinese or Japanese.

    As BERT's, it puts a space before each word; not before one character of a script
    that is written without spaces, nor before punctuation.
    """
    unspaced = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{P}\p{S}]"
    no_space = decoders.Replace(tokenizers.Regex(f"^ (?={unspaced})"), "")
    return decoders.Sequence([decoders.WordPiece(cleanup=False), no_space])


def _load_family(
    source: str, usual: dict[str, str], backend: tokenizers.Tokenizer
) -> "PreTrainedTokenizerFast":
    """Wraps a tokenizer with those of its family's usual tokens that it has."""
    vocabulary = backend.get_vocab()
    present = {name: token for name, token in usual.items() if token in vocabulary}
    return wrap(backend, present | _named_tokens(source))


def _word_piece(source: str, path: str) -> tokenizers.Tokenizer:
    """Builds BERT's tokenizer of a `vocab.txt`."""
    settings = _settings(source, "tokenizer_config.json")
    backend = tokenizers.Tokenizer(
        models.WordPiece.from_file(path, unk_token=settings.get("unk_token", "[UNK]"))
    )
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = word_piece_decoder()
    return backend


def _sentence_piece(source: str, path: str) -> tokenizers.Tokenizer:
    """Converts a SentencePiece model as transformers does, without its slow class."""
    from transformers.convert_slow_tokenizer import (
        SLOW_TO_FAST_CONVERTERS,
        SpmConverter,
    )

    settings = _settings(source, "tokenizer_config.json")
    shape = _settings(source, "config.json")
    name = settings.get("tokenizer_class") or shape.get("tokenizer_class") or ""
    if shape.get("model_type") == "xlnet":
        name = "XLNetTokenizer"
    converter = SLOW_TO_FAST_CONVERTERS.get(name.removesuffix("Fast"), SpmConverter)
    if not issubclass(converter, SpmConverter):
        converter = SpmConverter
    lowercase = settings.get("do_lower_case", False)
    original = types.SimpleNamespace(
        vocab_file=path,
        keep_accents=settings.get("keep_accents", False),
        do_lower_case=lowercase,
        _extra_ids=settings.get("extra_ids", 100),
        convert_tokens_to_ids=lambda token: 0,  # of a post-processor, which is removed
    )
    # With byte fallback where the model has bytes: the fast class can do it, too.
    converter = type("Converter", (converter,), {"handle_byte_fallback": True})
    converted = converter(original)
    backend = converted.converted()
    if converted.proto.trainer_spec.byte_fallback:
        steps = [decoders.ByteFallback(), backend.decoder]
        backend.decoder = decoders.Sequence(steps)
    if lowercase and "Lowercase" not in backend.to_str():  # as transformers' slow class
        steps = [normalizers.Lowercase(), backend.normalizer]
        backend.normalizer = normalizers.Sequence(steps)
    return backend


def _remove_post_processor(backend: tokenizers.Tokenizer) -> None:
    """Removes a post-processor that adds tokens; ByteLevel's only moves offsets."""
    settings = json.loads(backend.to_str())["post_processor"]
    if settings and settings["type"] != "ByteLevel":
        backend.post_processor = None


def _named_tokens(source: str) -> dict[str, Any]:
    """Returns the special tokens that the settings name, by transformers' names.

    And the chat template, if there is one.
    """
    from transformers import PreTrainedTokenizerFast

    values = _settings(source, "tokenizer_config.json")
    values |= _settings(source, "special_tokens_map.json")
    names = PreTrainedTokenizerFast.SPECIAL_TOKENS_ATTRIBUTES
    tokens = {name: values[name] for name in names if values.get(name)}
    tokens.pop("additional_special_tokens", None)
    named = {n: t["content"] if isinstance(t, dict) else t for n, t in tokens.items()}
    template = values.get("chat_template")
    if path := _path(source, "chat_template.jinja"):
        with open(path, encoding="utf-8") as stream:
            template = stream.read()
    return named | ({"chat_template": template} if template else {})


def _settings(source: str, name: str) -> dict[str, Any]:
    path = _path(source, name)
    return _load_json(path) if path else {}


def _load_json(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def _path(source: str, name: str) -> str:
    """Returns the path of a file in a folder or of a Hugging Face name, or ""."""
    from transformers.utils import cached_file

    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return path or ""
