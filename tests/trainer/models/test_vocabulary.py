"""A model takes the vocabulary of another tokenizer."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from transformers import GPT2Config

from configs.errors import UserError
from configs.schema import LoraConfig, ModelConfig
from configs.validation import validate
from tests import families, programs
from tests.conftest import SMALL, tiny_config, tiny_model
from tests.data_pipeline.runs import run
from tfrecords import encoding
from trainer.exporting import huggingface
from trainer.models import create, lora, registry, vocabulary

TEXTS = ["the house and the tree, the houses 12 樹和房子 Größe"] * 20
SPACES = {"Metaspace BPE": "▁", "Unigram": "▁", "WordPiece": ""}


def make(folder, family, size, texts=TEXTS):
    folder.mkdir()
    families.FAMILIES[family](folder, texts, size)
    return encoding.load_tokenizer(str(folder))


def run_on_text(folder, tokenizer, **fields):
    """A dataset of twenty lines, each with a number of its own."""
    lines = [f"{text} {number}" for number, text in enumerate(TEXTS)]
    (folder / "text.txt").write_text("\n".join(lines))
    settings = {"document": "line", "sequence_length": 8, "validation_fraction": 0.2}
    settings |= {"tokenizer": str(tokenizer), "allow_lossy_tokenizer": True}
    return run(folder / "text.txt", folder / "data", **settings | fields)


@pytest.fixture
def old(tmp_path):
    """A byte-level tokenizer that has " the" and " house" whole, and not " houses"."""
    texts = [text.replace("houses", "house") for text in TEXTS]
    return make(tmp_path / "old", "byte-level BPE", 290, texts)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_token_has_the_pieces_of_its_text(old, tmp_path, family):
    new = make(tmp_path / "new", family, 360)
    new.eos_token = new.eos_token or "[SEP]"
    pieces = vocabulary.pieces(old, new)
    ids, space = new.get_vocab(), SPACES.get(family, "Ġ")
    assert pieces[ids[f"{space}house"]] == [old.get_vocab()["Ġhouse"]]
    assert pieces[new.eos_token_id] == [old.eos_token_id]
    if f"{space}houses" in ids:
        assert len(pieces[ids[f"{space}houses"]]) > 1
        assert old.decode(pieces[ids[f"{space}houses"]]) == " houses"
    texts = [old.decode(pieces[index]) for token, index in ids.items() if "樹" in token]
    assert {text.strip()[:1] for text in texts} == ({"樹"} if texts else set())
    assert len(pieces) == max(ids.values()) + 1


def test_a_tokenizer_without_words(old, tmp_path):
    new = make(tmp_path / "new", "WordPiece", 60, ["! ?", "? !"])
    new.eos_token = new.eos_token or "[SEP]"
    assert not any(token.isalnum() for token in new.get_vocab())
    pieces = vocabulary.pieces(old, new)
    assert pieces[new.get_vocab()["!"]] == [old.get_vocab()["!"]]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_same_tokenizer_with_a_new_token_keeps_all_rows(tmp_path, family):
    same = make(tmp_path / "same", family, 300)
    same.eos_token = same.eos_token or "[SEP]"
    extended = encoding.load_tokenizer(str(tmp_path / "same"))
    extended.eos_token = same.eos_token
    extended.add_tokens(["<|the house|>"], special_tokens=True)
    *kept, added = vocabulary.pieces(same, extended)
    assert kept == [[index] for index in range(len(same))]
    assert "the house" in same.decode(added)


@pytest.mark.parametrize("name", ["gpt2", "algpt2"])
def test_a_checkpoint_takes_another_tokenizer(name, tmp_path, old):
    """Each row is the mean of its pieces' rows, and the tied head follows."""
    architecture = registry.get(name)
    config = tiny_config().model
    config.architecture, config.embedding_size = name, 8
    model = architecture.build(architecture.configure(config, len(old)))
    architecture.initialize(model, 1)
    gpt2 = architecture.as_transformers(model)
    huggingface.save(gpt2, old, tmp_path / "old", tf.float32)
    make(tmp_path / "new", "WordPiece", 100)
    written = run_on_text(tmp_path, tmp_path / "new")
    config = ModelConfig(architecture=name, initial_checkpoint=str(tmp_path / "old"))
    with pytest.raises(UserError, match=r"model\.vocabulary=transplant"):
        create.create_model(config, written, seed=0)
    config.vocabulary = "transplant"
    folder = str(tmp_path / "data" / "tokenizer")
    taken = create.create_model(config, written, 0, folder)
    new = encoding.load_tokenizer(folder)
    assert taken.config.vocab_size == written.vocabulary_size == len(new)
    assert create.model_configuration(config, written).vocab_size == len(new)
    assert taken.config.eos_token_id == written.end_of_text_id
    config.lora = LoraConfig(rank=2)
    assert lora.adapters(create.create_model(config, written, 0, folder))
    taken = architecture.as_transformers(taken)
    before = gpt2.transformer.wte.embeddings.numpy()
    table = taken.transformer.wte.embeddings.numpy()
    for row, ids in zip(table, vocabulary.pieces(old, new), strict=True):
        expected = (before[ids] if ids else before).mean(0)
        np.testing.assert_allclose(row, expected, atol=1e-5)
    the, end = new.get_vocab()["the"], new.eos_token_id
    old_ids = [old.get_vocab()["Ġthe"], old.eos_token_id]
    np.testing.assert_allclose(
        tf.gather(taken(np.array([[the, end]])).logits, [the, end], axis=-1),
        tf.gather(gpt2(np.array([old_ids])).logits, old_ids, axis=-1),
        atol=1e-4,
    )


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_checkpoint_of_any_family_is_known_by_its_tokenizer(tmp_path, family):
    """Files as published, a dataset of them with a new token, and no transplant."""
    tokenizer = make(tmp_path / "old", family, 300)
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "old")
    written = run_on_text(
        tmp_path, tmp_path / "old", start_token="<|new|>", end_token="<|end|>"
    )
    config = ModelConfig(initial_checkpoint=str(tmp_path / "old"))
    model = create.create_model(config, written, seed=0)
    assert model.config.vocab_size == len(tokenizer) + 2
    other = tmp_path / "other"
    make(other, family, 300, [f"zebra {text}" for text in TEXTS])
    other = run_on_text(other, other, end_token="<|end|>")
    with pytest.raises(UserError, match="with the model's tokenizer"):
        create.create_model(config, other, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_transplanted_run_resumes_and_is_exported(small_run, tmp_path, rank):
    """The same bytes, whether or not the run is stopped in between."""
    old, run = tmp_path / "old", tmp_path / "run"
    workdir = f"--workdir={run}"
    succeed("trainer.export", f"--workdir={small_run / 'run'}", f"--output_dir={old}")
    make(tmp_path / "new", "Unigram", 300)
    written = run_on_text(tmp_path, tmp_path / "new", sequence_length=128)
    data = f"--data_dir={tmp_path / 'data'}"
    train = [
        *("trainer.train", *SMALL, data, workdir, "--json"),
        f"--config.model.initial_checkpoint={old}",
        "--config.model.vocabulary=transplant",
        f"--config.model.lora.rank={rank}",
    ]
    succeed(*train)
    last = run / "checkpoints" / "step-00000006" / "state.safetensors"
    state = last.read_bytes()
    shutil.rmtree(last.parent)
    result = json.loads(succeed(*train))
    assert last.read_bytes() == state
    exported = tmp_path / "exported"
    succeed("trainer.export", workdir, f"--output_dir={exported}")
    shape = GPT2Config.from_pretrained(exported)
    assert shape.vocab_size == written.vocabulary_size
    assert shape.eos_token_id == written.end_of_text_id
    scored = succeed("trainer.evaluate", data, f"--checkpoint={exported}", "--json")
    loss = json.loads(scored)["loss"]
    assert loss == pytest.approx(result["validation_loss_after"], rel=1e-5)


def succeed(*command):
    process = programs.run(*command)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_a_transplant_needs_a_checkpoint():
    config = tiny_config()
    config.model.vocabulary = "transplant"
    with pytest.raises(UserError, match=r"Set `model\.initial_checkpoint`"):
        validate(config)
