"""Loads, trains or extends the byte-level BPE of a job."""

import dataclasses
import os
import tempfile
from typing import TYPE_CHECKING

import tokenizers

if TYPE_CHECKING:
    from transformers import GPT2TokenizerFast

from configs.errors import DataError
from configs.schema import DataConfig
from data_pipeline import finished_work
from data_pipeline.job import Job
from data_pipeline.tokens.encoder import Vocabulary
from tfrecords.storage import files

END_OF_TEXT = "<|endoftext|>"
FILE_NAME = "tokenizer.json"


def load_or_train(job: Job, folder: str) -> Vocabulary:
    """Stores the job's tokenizer in `folder`, unless that is done.

    Args:
      job: with `config.tokenizer` a Hugging Face name, a folder (tokenizer.json, or
        vocab.json and merges.txt), or "train", which learns one from the training
        documents.
      folder: in the folder of unfinished work, where a run that continues looks first.

    Raises:
      DataError: nothing loads from that name, or it has no end-of-text token.
    """

    def work() -> tuple[list[str], dict]:
        name = job.config.tokenizer
        tokenizer = _train(job) if name == "train" else _load(name)
        made_up = set() if name == "train" else _made_up_tokens(tokenizer, name)
        vocabulary = _extend(tokenizer, job.config, made_up)
        with tempfile.TemporaryDirectory() as local:
            tokenizer.save_pretrained(local)
            names = sorted(os.listdir(local))
            for file in names:
                files.write(f"{folder}/{file}", files.read(os.path.join(local, file)))
        return [f"{folder}/{file}" for file in names], dataclasses.asdict(vocabulary)

    item = finished_work.fingerprint(job.description())
    values = finished_work.do_once(f"{folder}.done", item, work)
    return Vocabulary(**{**values, "added_tokens": tuple(values["added_tokens"])})


def _load(name: str) -> "GPT2TokenizerFast":
    from transformers import GPT2TokenizerFast

    try:
        tokenizer = GPT2TokenizerFast.from_pretrained(name)
    except Exception as error:  # tokenizers raises no class of its own
        reason = [*str(error).splitlines(), ""][0]
        if isinstance(error, TypeError):  # a path is None
            reason = "it has neither. A vocab.txt is another kind of tokenizer."
        raise DataError(
            "`data.tokenizer` must be a Hugging Face name, a folder with "
            "tokenizer.json or with vocab.json and merges.txt, or `train`. Received: "
            f"{name!r}, which fails with: {reason}"
        ) from error
    missing = set(_bytes_as_letters()) - set(tokenizer.get_vocab())
    is_bpe = isinstance(tokenizer.backend_tokenizer.model, tokenizers.models.BPE)
    if missing or not is_bpe:
        raise DataError(
            "`data.tokenizer` must be a byte-level BPE with all 256 bytes, as GPT-2's "
            f"is: text would be lost. Received: {name!r}, in which {len(missing)} "
            "bytes are missing. Name another."
        )
    return tokenizer


def _made_up_tokens(tokenizer: "GPT2TokenizerFast", name: str) -> set[str]:
    """Returns special tokens that the files lack: transformers adds them with new ids.

    Args:
      tokenizer: as transformers loads it.
      name: that it was loaded from.
    """
    size = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if max(tokenizer.get_vocab().values()) < size:
        return set()
    stored = type(tokenizer).from_pretrained(
        name, bos_token=None, eos_token=None, unk_token=None
    )
    return set(tokenizer.get_vocab()) - set(stored.get_vocab())


def _extend(
    tokenizer: "GPT2TokenizerFast", config: DataConfig, made_up: set[str]
) -> Vocabulary:
    """Adds the start and end tokens that are new, and returns all special ids.

    Args:
      tokenizer: is changed.
      config: names the tokens.
      made_up: see `_made_up_tokens`. They are new tokens, which a model has no rows
        for, and none of them is taken for the end of a text unless the config names it.
    """
    if tokenizer.eos_token in made_up:
        tokenizer.eos_token = None
    end_token = tokenizer.eos_token if config.end_token is None else config.end_token
    if not end_token and tokenizer.eos_token is None:
        raise DataError(
            "`data.tokenizer` must have an end-of-text token (eos_token), which "
            f"separates documents. Received: {config.tokenizer!r}, which has none. "
            "Name one with `--config.data.end_token`."
        )
    special = [token for token in (config.start_token, end_token) if token]
    before = tokenizer.get_vocab()
    tokenizer.add_tokens(
        [token for token in special if token not in before], special_tokens=True
    )
    if end_token:  # generation and exports use the same
        tokenizer.eos_token = end_token
    ids = tokenizer.get_vocab()
    end_of_text_id = ids[tokenizer.eos_token]
    pad_id = tokenizer.pad_token_id
    return Vocabulary(
        size=max(ids.values()) + 1,
        end_of_text_id=end_of_text_id,
        pad_id=end_of_text_id if pad_id is None else pad_id,
        start_id=ids[config.start_token] if config.start_token else None,
        end_id=ids[end_token] if end_token else None,
        added_tokens=tuple(
            sorted(ids.keys() - (before.keys() - made_up), key=ids.__getitem__)
        ),
    )


def _train(job: Job) -> "GPT2TokenizerFast":
    from transformers import GPT2TokenizerFast

    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=job.config.vocab_size,
        special_tokens=[END_OF_TEXT],
        # With all 256 bytes it can encode every text.
        initial_alphabet=_bytes_as_letters(),
        show_progress=False,
    )
    bpe.train_from_iterator(job.training_texts(), trainer)
    return GPT2TokenizerFast(
        tokenizer_object=bpe,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        model_max_length=job.n_positions,
    )


def _bytes_as_letters() -> list[str]:
    return sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
