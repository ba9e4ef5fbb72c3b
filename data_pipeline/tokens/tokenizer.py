"""Loads, trains or extends the tokenizer of a job."""

import dataclasses
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import tokenizers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

from configs.errors import DataError, one_message
from configs.schema import DataConfig
from data_pipeline import finished_work
from data_pipeline.job import Job
from data_pipeline.tokens.encoder import Vocabulary
from tfrecords import encoding
from tfrecords.storage import files

END_OF_TEXT = "<|endoftext|>"
# BERT's, which ends a document where a tokenizer has no end-of-text token.
_SEPARATOR = "[SEP]"
FILE_NAME = "tokenizer.json"
# A tokenizer, what trains it, and its special tokens by their names in transformers.
_Untrained = tuple[tokenizers.Tokenizer, Any, dict[str, str]]


def load_or_train(job: Job, folder: str) -> Vocabulary:
    """Stores the job's tokenizer in `folder`, unless that is done.

    Args:
      job: with `config.tokenizer` a Hugging Face name, a folder (see
        `encoding.load_tokenizer`), or "train", which learns one from the training
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
        if job.config.messages_field:
            _check_template(tokenizer, job.config)
        with tempfile.TemporaryDirectory() as local:
            # A chat template goes into tokenizer_config.json, which all readers know.
            tokenizer.save_pretrained(local, save_jinja_files=False)
            names = sorted(os.listdir(local))
            for file in names:
                files.write(f"{folder}/{file}", files.read(os.path.join(local, file)))
        return [f"{folder}/{file}" for file in names], dataclasses.asdict(vocabulary)

    item = finished_work.fingerprint(job.description())
    values = finished_work.do_once(f"{folder}.done", item, work)
    return Vocabulary(**{**values, "added_tokens": tuple(values["added_tokens"])})


def _load(name: str) -> "PreTrainedTokenizerFast":
    with one_message(
        DataError,
        "`data.tokenizer` must be a Hugging Face name, a folder with tokenizer.json, "
        "vocab.json and merges.txt, vocab.txt or spiece.model, or `train`. Received: "
        f"{name!r}, which fails with:",
    ):
        return encoding.load_tokenizer(name)


def _check_template(tokenizer: "PreTrainedTokenizerFast", config: DataConfig) -> None:
    try:
        tokenizer.get_chat_template()
    except ValueError as error:
        raise DataError(
            "`data.tokenizer` must carry a chat template, which makes a text of "
            f"`{config.messages_field}`. Received: {config.tokenizer!r}, which has "
            "none. Put `chat_template.jinja` into a folder with the tokenizer's files, "
            "and name the folder by `--config.data.tokenizer`."
        ) from error


def _made_up_tokens(tokenizer: "PreTrainedTokenizerFast", name: str) -> set[str]:
    """Returns special tokens that the vocabulary lacks: they are added with new ids.

    Args:
      tokenizer: as it is loaded.
      name: that it was loaded from.
    """
    size = tokenizer.backend_tokenizer.get_vocab_size(with_added_tokens=False)
    if max(tokenizer.get_vocab().values()) < size:
        return set()
    stored = encoding.load_tokenizer(name, special_tokens=False)
    return set(tokenizer.get_vocab()) - set(stored.get_vocab())


def _end_token(
    tokenizer: "PreTrainedTokenizerFast", config: DataConfig, made_up: set[str]
) -> str | None:
    """Returns the token after each document; "": none stands there.

    Args:
      tokenizer: whose `eos_token` is replaced where it is made up, or missing.
      config: names the token, if the tokenizer's own is not to be used.
      made_up: see `_made_up_tokens`.

    Raises:
      DataError: the config does not name one, and the tokenizer has none.
    """
    if tokenizer.eos_token in made_up:
        tokenizer.eos_token = None
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None and _SEPARATOR in vocabulary:
        tokenizer.eos_token = _SEPARATOR
    end_token = tokenizer.eos_token if config.end_token is None else config.end_token
    if not end_token and tokenizer.eos_token is None:
        added = tokenizer.added_tokens_decoder.values()
        special = [token.content for token in added if token.special]
        raise DataError(
            "`data.tokenizer` must have an end-of-text token (eos_token, or "
            f"{_SEPARATOR}), which separates documents. Received: "
            f"{config.tokenizer!r}, which has none. Name one with "
            "`--config.data.end_token`; its special tokens are: "
            f"{', '.join(special) or 'none'}."
        )
    return end_token


def _extend(
    tokenizer: "PreTrainedTokenizerFast", config: DataConfig, made_up: set[str]
) -> Vocabulary:
    """Adds the start and end tokens that are new, and returns all special ids.

    Args:
      tokenizer: is changed.
      config: names the tokens.
      made_up: see `_made_up_tokens`. They are new tokens, which a model has no rows
        for, and none of them is taken for the end of a text unless the config names it.
    """
    end_token = _end_token(tokenizer, config, made_up)
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


def _train(job: Job) -> "PreTrainedTokenizerFast":
    """Trains a tokenizer of the family `data.tokenizer_model` on the training text.

    Raises:
      DataError: `vocab_size` is too small for it.
    """
    backend, trainer, special_tokens = _FAMILIES[job.config.tokenizer_model](job)
    try:
        backend.train_from_iterator(job.training_texts(), trainer)
    except Exception as error:  # tokenizers raises no class of its own
        if "not large enough" not in str(error):
            raise
        raise DataError(
            "`data.vocab_size` must be larger than the number of different characters, "
            f"each of which is a token of a {job.config.tokenizer_model} tokenizer. "
            f"Received: {job.config.vocab_size}. Raise it, or set "
            "--config.data.tokenizer_model=bpe."
        ) from error
    if job.config.tokenizer_model == "bpe":
        from transformers import GPT2TokenizerFast

        return GPT2TokenizerFast(
            tokenizer_object=backend,
            model_max_length=job.n_positions,
            **special_tokens,
        )
    tokenizer = encoding.wrap(backend, special_tokens)
    tokenizer.model_max_length = job.n_positions
    return tokenizer


def _byte_level_bpe(job: Job) -> _Untrained:
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=job.config.vocab_size,
        special_tokens=[END_OF_TEXT],
        # With all 256 bytes it can encode every text.
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    names = ("bos_token", "eos_token", "unk_token")
    return bpe, trainer, dict.fromkeys(names, END_OF_TEXT)


def _unigram(job: Job) -> _Untrained:
    """As SentencePiece: words begin with a space, and nothing is normalized."""
    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram())
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    unigram.decoder = tokenizers.decoders.Metaspace()
    special_tokens = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=job.config.vocab_size,
        special_tokens=list(special_tokens.values()),
        unk_token="<unk>",
        show_progress=False,
    )
    return unigram, trainer, special_tokens


def _word_piece(job: Job) -> _Untrained:
    """As BERT's multilingual one: each Chinese character is a word; case stays."""
    word_piece = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    word_piece.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    word_piece.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    word_piece.decoder = encoding.word_piece_decoder()
    special_tokens = encoding.BERT_TOKENS
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=job.config.vocab_size,
        special_tokens=list(special_tokens.values()),
        limit_alphabet=job.config.vocab_size - len(special_tokens),
        show_progress=False,
    )
    return word_piece, trainer, special_tokens


_FAMILIES: dict[str, Callable[[Job], _Untrained]] = {
    "bpe": _byte_level_bpe,
    "unigram": _unigram,
    "wordpiece": _word_piece,
}
