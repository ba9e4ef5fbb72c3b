"""Loads or trains the byte-level BPE.

Worker processes import this module with the program but do not use it: transformers,
which takes seconds to import, waits for who needs it.
"""

import os
from typing import TYPE_CHECKING

import tokenizers

if TYPE_CHECKING:
    from transformers import GPT2TokenizerFast

from data_pipeline.job import Job
from data_pipeline.sources import InputError

END_OF_TEXT = "<|endoftext|>"


def load_or_train(job: Job, folder: str) -> "GPT2TokenizerFast":
    """Returns the job's tokenizer, which from then on is stored in `folder`.

    Args:
      job: with `config.tokenizer` a Hugging Face name, a folder (tokenizer.json, or
        vocab.json and merges.txt), or "train": learnt from the training documents.
      folder: of the unfinished work. A run that continues finds its tokenizer there.

    Raises:
      InputError: nothing loads from that name, or it has no end-of-text token.
    """
    from transformers import GPT2TokenizerFast

    if os.path.isdir(folder):
        return GPT2TokenizerFast.from_pretrained(folder)
    name = job.config.tokenizer
    tokenizer = _train(job) if name == "train" else _load(name)
    tokenizer.save_pretrained(f"{folder}.partial")
    os.replace(f"{folder}.partial", folder)
    return tokenizer


def _load(name: str) -> "GPT2TokenizerFast":
    from transformers import GPT2TokenizerFast

    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(name)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "`data.tokenizer` must be a Hugging Face name, a folder with "
            "tokenizer.json or with vocab.json and merges.txt, or `train`. Received: "
            f"{name!r}. Loading said: {str(error).splitlines()[0]}"
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"The tokenizer {name!r} must have an end-of-text token (eos_token), which "
            "separates documents. It has none."
        )
    return tokenizer


def _train(job: Job) -> "GPT2TokenizerFast":
    from transformers import GPT2TokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=job.config.vocab_size,
        special_tokens=[END_OF_TEXT],
        # All 256 bytes, so that every text can be encoded.
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(job.training_documents(), trainer)
    return GPT2TokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=job.n_positions,
    )
