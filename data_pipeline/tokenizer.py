"""Loads or trains the byte-level BPE.

Worker processes import this module, but only need `load_encoder`; transformers, which
takes seconds to import, waits for who needs it.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

import tokenizers

if TYPE_CHECKING:
    from transformers import GPT2TokenizerFast

from configs.schema import DataConfig
from data_pipeline.sources import InputError

END_OF_TEXT = "<|endoftext|>"


def load_or_train(
    config: DataConfig, n_positions: int, documents: Iterable[str]
) -> "GPT2TokenizerFast":
    """Returns the tokenizer that `config.tokenizer` names.

    Args:
      config: with `tokenizer` a Hugging Face name, a folder (tokenizer.json, or
        vocab.json and merges.txt), or "train".
      n_positions: the model's longest context, which a new tokenizer records.
      documents: what a new tokenizer learns from; else not touched.

    Raises:
      InputError: nothing loads from that name, or it has no end-of-text token.
    """
    if config.tokenizer == "train":
        return _train(documents, config.vocab_size, n_positions)
    from transformers import GPT2TokenizerFast

    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(config.tokenizer)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "`data.tokenizer` must be a Hugging Face name, a folder with "
            "tokenizer.json or with vocab.json and merges.txt, or `train`. Received: "
            f"{config.tokenizer!r}. Loading said: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {config.tokenizer!r} must have an end-of-text token "
            "(eos_token), which separates documents. It has none."
        )
    return tokenizer


def load_encoder(folder: str) -> tokenizers.Tokenizer:
    """Loads the stored tokenizer for encoding, without importing transformers."""
    encoder = tokenizers.Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    # A literal "<|endoftext|>" in the text is text: no document can end another.
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _train(
    documents: Iterable[str], vocab_size: int, n_positions: int
) -> "GPT2TokenizerFast":
    from transformers import GPT2TokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, so that every text can be encoded.
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(documents, trainer)
    return GPT2TokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=n_positions,
    )
