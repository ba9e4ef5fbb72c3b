"""Folders with a tokenizer of each family, as people publish them."""

import json
import pathlib
from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

# Of Mistral's tekken and its like: several digits, line ends after punctuation.
_TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(folder: pathlib.Path, texts: Sequence[str], size: int) -> None:
    """GPT-2's kind, as vocab.json and merges.txt."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    _train_bpe(bpe, texts, size, ["<|endoftext|>"], ALPHABET)
    bpe.model.save(str(folder))


def tekken(folder: pathlib.Path, texts: Sequence[str], size: int) -> None:
    """Byte-level BPE that another pattern splits, as tokenizer.json."""
    bpe = tokenizers.Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(_TEKKEN_PATTERN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    bpe.decoder = decoders.ByteLevel()
    _train_bpe(bpe, texts, size, ["<s>", "</s>"], ALPHABET)
    bpe.save(str(folder / "tokenizer.json"))
    _name_tokens(folder, eos_token="</s>", bos_token="<s>")


def metaspace(folder: pathlib.Path, texts: Sequence[str], size: int) -> None:
    """KoGPT2's kind: characters, and spaces as "▁", in a tokenizer.json alone."""
    bpe = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    bpe.normalizer = normalizers.NFKC()
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    _train_bpe(bpe, texts, size, ["<unk>", "</s>"], [])
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    bpe.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    _name_tokens(folder, eos_token="</s>")


def word_piece(folder: pathlib.Path, texts: Sequence[str], size: int) -> None:
    """The kind of Chinese GPT-2: a vocab.txt alone."""
    piece = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    piece.normalizer = normalizers.BertNormalizer()
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=special, show_progress=False
    )
    piece.train_from_iterator(texts, trainer)
    vocabulary = piece.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")


def sentence_piece(folder: pathlib.Path, texts: Sequence[str], size: int) -> None:
    """The kind of rinna and XLNet: a spiece.model of a Unigram, alone."""
    from transformers.utils import sentencepiece_model_pb2_new as protocol

    unigram = tokenizers.Tokenizer(models.Unigram())
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", "<sep>", "<cls>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=size,
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    unigram.train_from_iterator(texts, trainer)
    model = protocol.ModelProto()
    for token, score in json.loads(unigram.to_str())["model"]["vocab"]:
        normal, unknown, control = 1, 2, 3
        kind = control if token in special else normal
        kind = unknown if token == "<unk>" else kind
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = 1
    model.trainer_spec.unk_id = 0
    (folder / "spiece.model").write_bytes(model.SerializeToString())


FAMILIES = {
    "byte-level BPE": byte_level,
    "tekken-like BPE": tekken,
    "Metaspace BPE": metaspace,
    "WordPiece": word_piece,
    "Unigram": sentence_piece,
}


def _train_bpe(bpe, texts, size, special_tokens, alphabet) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)


def _name_tokens(folder: pathlib.Path, **special_tokens: str) -> None:
    content = json.dumps(special_tokens)
    (folder / "special_tokens_map.json").write_text(content)
