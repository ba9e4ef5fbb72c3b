"""A model and its tokenizer are one contract: each id is a row of the table."""

import json

import pytest
import tensorflow as tf
import tokenizers
from transformers import GPT2TokenizerFast

from configs.errors import DataError, UserError
from configs.schema import ModelConfig
from tests import programs
from tests.conftest import assert_refused, tiny_model
from tests.data_pipeline.runs import run
from trainer.exporting import huggingface
from trainer.models import create
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
END = "<|endoftext|>"


def write_vocabulary(folder, *tokens):
    """vocab.json and merges.txt of the 256 bytes and of tokens, nothing else."""
    folder.mkdir()
    names = [*LETTERS, *tokens]
    vocabulary = {name: index for index, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def write_model(folder, size):
    """A model of `size` rows beside the tokenizer that the folder has."""
    gpt2 = tiny_model(n_layer=1, n_positions=64, vocab_size=size)
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    huggingface.save(gpt2, tokenizer, folder, tf.float32)
    for path in folder.iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()
    for path, content in files.items():
        path.write_bytes(content)


@pytest.fixture
def corpus(tmp_path):
    lines = [json.dumps({"text": f"document {number} " * 9}) for number in range(200)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path / "text.jsonl"


@pytest.fixture
def made_up(tmp_path):
    """A model of 256 rows whose vocab.json lacks the end of a text."""
    folder = write_vocabulary(tmp_path / "made_up")
    write_model(folder, 256)
    return folder


@pytest.fixture
def unresized(tmp_path):
    """A model of 257 rows whose tokenizer got a token more."""
    folder = write_vocabulary(tmp_path / "unresized", END)
    tokenizer = GPT2TokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    write_model(folder, 257)
    return folder


def test_a_token_that_transformers_makes_up_must_be_named(made_up, corpus, tmp_path):
    with pytest.raises(DataError, match="must have an end-of-text token"):
        run(corpus, tmp_path / "refused", tokenizer=str(made_up))
    settings = {"tokenizer": str(made_up), "end_token": END}
    written = run(corpus, tmp_path / "data", **settings)
    assert written.added_tokens == (END,)
    assert (written.end_of_text_id, written.vocabulary_size) == (256, 257)
    config = ModelConfig(initial_checkpoint=str(made_up))
    assert create.create_model(config, written, seed=0).config.vocab_size == 257
    assert create.model_configuration(config, written).vocab_size == 257


def test_a_token_without_a_row_gets_one_in_training(unresized, corpus, tmp_path):
    written = run(corpus, tmp_path / "data", tokenizer=str(unresized))
    assert written.added_tokens == ()
    assert (written.pad_id, written.vocabulary_size) == (257, 258)
    config = ModelConfig(initial_checkpoint=str(unresized))
    assert create.create_model(config, written, seed=0).config.vocab_size == 258
    assert create.model_configuration(config, written).vocab_size == 258


def test_a_larger_vocabulary_is_not_taken_without_comparing(made_up, corpus, tmp_path):
    """A checkpoint without a tokenizer may be of another one."""
    settings = {"tokenizer": "train", "vocab_size": 300}
    written = run(corpus, tmp_path / "data", **settings)
    for name in ("vocab.json", "merges.txt"):
        (made_up / name).unlink()
    config = ModelConfig(initial_checkpoint=str(made_up))
    with pytest.raises(UserError, match="Preprocess with the model's tokenizer"):
        create.create_model(config, written, seed=0)


@pytest.mark.parametrize("name", ["made_up", "unresized"])
def test_an_id_without_a_row_is_refused_where_none_is_made(request, name):
    folder = str(request.getfixturevalue(name))
    model = weights.load(folder)
    with pytest.raises(UserError, match=r"must have a row.*resize_token_embeddings"):
        create.load_tokenizer(GPT2, folder, model)


def test_every_program_refuses_an_id_without_a_row(unresized, corpus, tmp_path):
    run(corpus, tmp_path / "data", tokenizer=str(unresized))
    checkpoint, advice = f"--checkpoint={unresized}", "resize_token_embeddings"
    for module, *arguments in (
        ("trainer.generate", "--prompt=a"),
        ("trainer.export", f"--output_dir={tmp_path / 'export'}"),
        ("trainer.evaluate", f"--data_dir={tmp_path / 'data'}"),
    ):
        process = programs.run(module, checkpoint, *arguments)
        assert_refused(process, advice)
    assert not (tmp_path / "export").exists()
