"""Preprocessing as a whole, on real text if it is available, in real processes."""

import json
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from configs.errors import DataError
from configs.schema import Config, DataConfig
from data_pipeline.documents.chunk import split_of
from data_pipeline.documents.document import Document
from data_pipeline.job import plan_job
from data_pipeline.records import packing
from data_pipeline.sources.input_files import InputFile
from data_pipeline.tokens.tokenizer import END_OF_TEXT
from tests import programs
from tests.conftest import assert_refused, run_program, shared
from tests.data_pipeline.runs import SMALL_CHUNKS, command, hashes, load_encoder, run
from tfrecords import manifest, schema


def stored_records(folder, split) -> list[tuple[list[int], int]]:
    """Reads the shards with TensorFlow's reader, in the order of the manifest."""
    dataset = manifest.load(str(folder))
    paths = [str(folder / shard.name) for shard in dataset.split(split).shards]
    batches = tf.data.TFRecordDataset(paths).batch(64)
    records = []
    for serialized in batches:
        parsed = schema.parse(
            serialized, sequence_length=dataset.sequence_length, dtype=dataset.dtype
        )
        records += zip(
            parsed["tokens"].numpy().tolist(), parsed["length"].numpy(), strict=True
        )
    return records


def unshuffled_tokens(folder, split, seed) -> list[int]:
    records = stored_records(folder, split)
    stored = packing.stored_order(len(records), seed=seed, shuffle=split == "train")
    in_order = [records[place] for place in np.argsort(stored)]
    return [token for row, length in in_order for token in row[:length]]


def test_no_token_is_lost(corpus, tmp_path):
    """Shards, unshuffled, are the tokenizer's output for the corpus, document by
    document, computed here without chunks, pieces or packing."""
    written = run(corpus, tmp_path, num_workers=2, **SMALL_CHUNKS)
    encoder = load_encoder(tmp_path)
    end = encoder.token_to_id(END_OF_TEXT)
    expected = {"train": [], "validation": []}
    counts = {"train": [0, 0, 0], "validation": [0, 0, 0]}
    for path in sorted(corpus.iterdir()):
        for line in path.read_text().splitlines():
            text = json.loads(line)["text"]
            split = split_of(Document((text.encode(),)), 0.1)
            expected[split] += [*encoder.encode(text).ids, end]
            for index, number in enumerate((1, len(text.split()), len(text.encode()))):
                counts[split][index] += number
    for split, tokens in expected.items():
        assert unshuffled_tokens(tmp_path, split, seed=7) == tokens
        stored = written.split(split)
        assert [stored.documents, stored.words, stored.bytes] == counts[split]
        assert stored.tokens == len(tokens)
    # About a tenth of the documents is held out, and training is shuffled.
    assert 250 < written.split("validation").documents < 550
    stored = [
        t for row, length in stored_records(tmp_path, "train") for t in row[:length]
    ]
    assert stored != expected["train"]


def test_real_text_of_many_scripts_round_trips(tmp_path):
    names = [
        shared("chinese/sanguo.jsonl"),
        shared("recipes/howtocook_zh.jsonl"),
        shared("recipes/based_cooking_en.jsonl"),
    ]
    corpus = ",".join(names)
    written = run(corpus, tmp_path, num_workers=2, validation_fraction=0.0)
    encoder = load_encoder(tmp_path)
    end = encoder.token_to_id(END_OF_TEXT)
    texts = [
        json.loads(line)["text"]
        for name in sorted(names)
        for line in pathlib.Path(name).read_text().splitlines()
    ]
    tokens = unshuffled_tokens(tmp_path, "train", seed=7)
    cuts = np.flatnonzero(np.array(tokens) == end)
    decoded = [
        encoder.decode(part[:-1]) for part in np.split(tokens, cuts + 1) if len(part)
    ]
    assert decoded == [text for text in texts if text.strip()]
    assert list(written.splits) == ["train"]


def test_gpt2_vocabulary_gives_gpt2_tokens(tmp_path):
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    text = shared("english/tinyshakespeare.txt")
    written = run(text, tmp_path, tokenizer=vocabulary, validation_fraction=0.0)
    assert (written.vocabulary_size, written.end_of_text_id) == (50257, 50256)
    reference = tokenizers.ByteLevelBPETokenizer(
        f"{vocabulary}/vocab.json", f"{vocabulary}/merges.txt"
    )
    expected = reference.encode(pathlib.Path(text).read_text()).ids
    assert unshuffled_tokens(tmp_path, "train", seed=7) == [*expected, 50256]


def test_validation_input_is_a_split_of_its_own(corpus, tmp_path):
    written = run(
        corpus / "three.jsonl",
        tmp_path,
        validation_input=str(corpus / "one.jsonl"),
    )
    assert written.split("train").documents == 3000
    assert written.split("validation").documents == 40


def test_adding_documents_moves_none():
    texts = [b"document %d" % number for number in range(2000)]
    small, large = (
        {t for t in texts if split_of(Document((t,)), share) == "validation"}
        for share in (0.01, 0.1)
    )
    assert small < large
    assert 5 < len(small) < 50
    assert 150 < len(large) < 250


def test_the_order_of_the_input_list_does_not_matter(corpus, tmp_path):
    names = [str(path) for path in sorted(corpus.iterdir())]
    run(",".join(names), tmp_path / "a")
    run(",".join(reversed(names)), tmp_path / "b")
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_validation_files_must_not_be_training_files(corpus):
    config = DataConfig(input=str(corpus), validation_input=str(corpus / "one.jsonl"))
    with pytest.raises(DataError, match="must not be part of `--input`"):
        plan_job(Config(data=config))


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, [], "must name files that exist"),
        ("", [], "are empty"),
        (" \n ", ["--config.data.document=line"], "no document but white space"),
        ("too short", ["--config.data.validation_fraction=0"], "at least one sequence"),
        ("one document " * 999, [], "is one file, "),
        (
            "one document " * 999,
            ["--config.data.document=line", "--config.data.validation_fraction=1e-6"],
            "The validation split must hold a document",
        ),
        (
            "some text " * 999,
            [
                "--config.data.validation_fraction=0",
                "--config.data.num_shards=500",
            ],
            "`data.num_shards` must not exceed",
        ),
        (
            "text " * 99,
            ["--config.data.document=line", "--config.data.tokenizer=/nowhere"],
            "`data.tokenizer` must",
        ),
    ],
)
def test_bad_input_is_one_message(tmp_path, text, arguments, message):
    if text is not None:
        (tmp_path / "a.txt").write_text(text)
    result = programs.run(
        "data_pipeline.preprocess",
        *command(tmp_path / "a.txt", tmp_path / "out", *arguments),
    )
    assert_refused(result, message)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_malformed_line_in_a_worker_is_one_message(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    result = run_program(
        "data_pipeline.preprocess",
        *command(
            tmp_path / "a.jsonl",
            tmp_path / "out",
            f"--config.data.tokenizer={vocabulary}",
        ),
    )
    assert_refused(result, "a.jsonl:2: each line must be a JSON object")


def test_the_description_of_a_job_does_not_depend_on_paths(corpus, tmp_path):
    """A copy of the input elsewhere gives the same manifest."""
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plans = [
        plan_job(Config(data=DataConfig(input=str(folder))))
        for folder in (corpus, tmp_path)
    ]
    assert plans[0].description() == plans[1].description()
    assert isinstance(plans[0].train_files[0], InputFile)


def test_new_fields_at_their_defaults_leave_old_datasets_the_same(corpus):
    """A dataset of before the field is that of the same job."""
    default, changed = (
        plan_job(Config(data=DataConfig(input=str(corpus), null_text=value)))
        for value in ("stop", "skip")
    )
    assert "null_text" not in default.description()
    assert changed.description()["null_text"] == "skip"
    assert default.differences(default.description()) == []
    for one, other in ((default, changed), (changed, default)):
        assert one.differences(other.description()) == ["null_text"]


def test_attention_changes_no_record(corpus):
    """The trainer reads it. Finished work and datasets are those without it."""
    plans = [
        plan_job(Config(data=DataConfig(input=str(corpus), attention=value)))
        for value in ("causal", "document")
    ]
    assert plans[0].description() == plans[1].description()
    assert "attention" not in plans[0].description()
    assert plans[0].chunks == plans[1].chunks


@pytest.mark.parametrize("detokenizer", ["none", "wikitext"])
def test_special_tokens_that_become_text_are_counted(tmp_path, caplog, detokenizer):
    """415 of them, some in one document, as in a corpus that they separate."""
    lines = ["one two <|endoftext|> three"] * 400 + ["<|endoftext|>" * 5 + "a"] * 3
    (tmp_path / "a.txt").write_text("\n".join([*lines, "<|endoftext", "none"]))
    settings = {"document": "line", "validation_fraction": 0.0, "vocab_size": 300}
    settings["detokenizer"] = detokenizer
    split = run(tmp_path / "a.txt", tmp_path / "text", **settings).split("train")
    assert split.kept == {"special_token_as_text": 415}
    assert "415 special tokens in the text" in caplog.text
    assert "allow_special_tokens" in caplog.text
    settings["allow_special_tokens"] = True
    split = run(tmp_path / "a.txt", tmp_path / "token", **settings).split("train")
    assert split.kept == {}


def test_a_tokenizer_that_loses_text_or_has_no_end_is_refused(corpus, tmp_path):
    run(corpus / "two.jsonl", tmp_path / "good")
    stored = (tmp_path / "good" / "tokenizer" / "tokenizer.json").read_text()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    settings = {"tokenizer": str(folder), "validation_fraction": 0.0}
    with pytest.raises(DataError, match="it has none of them"):
        run(corpus, tmp_path / "out", **settings)

    def write(change):
        values = json.loads(stored)
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values))

    def without_a_byte(values):
        del values["model"]["vocab"]["t"]
        values["model"]["merges"] = []

    write(without_a_byte)
    lossy = {"end_token": END_OF_TEXT, **settings}
    with pytest.raises(DataError, match=r"3,945 documents \(.*do not decode"):
        run(corpus, tmp_path / "out", **lossy)

    def without_an_end(values):
        values["added_tokens"] = []
        ids = values["model"]["vocab"]
        ids["renamed"] = ids.pop(END_OF_TEXT)

    write(without_an_end)
    with pytest.raises(DataError, match="must have an end-of-text token"):
        run(corpus, tmp_path / "out", **settings)
    written = run(corpus, tmp_path / "out", **settings, end_token="<|end|>")
    # transformers needs the first for its own defaults.
    assert written.added_tokens == (END_OF_TEXT, "<|end|>")

    write(lambda values: values["model"]["vocab"].update(gap=70_000))
    written = run(corpus, tmp_path / "gap", **settings)
    assert (written.vocabulary_size, written.token_dtype) == (70_001, "uint32")
