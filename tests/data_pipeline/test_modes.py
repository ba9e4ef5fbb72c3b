"""Modes, special tokens, repetitions, TFDS, Beam: the same bytes on every engine."""

import json
import os
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from configs.errors import UserError
from configs.schema import Config, DataConfig
from data_pipeline import engine, packing, preprocess
from data_pipeline import job as jobs
from tests.conftest import (
    ROOT,
    run_program,
    shared,
    summed_loss,
    tiny_config,
    tiny_model,
)
from tests.data_pipeline.test_preprocess import (
    SETTINGS,
    hashes,
    in_process,
    load_encoder,
    run,
)
from tests.tfrecords.test_windows import by_hand, read
from tfrecords import manifest, schema, verify
from tfrecords.windows import Windows
from trainer.models.create import create_model
from trainer.models.gpt2 import weights

BEAM = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]
MODES = {
    "packed": {},
    "overlapping": {"stride": 16},
    "document": {"mode": "document", "start_token": "<|start|>"},
    "labelled": {"mode": "labelled", "padding_side": "left", "deduplicate": True},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Labelled documents of 1 to 120 words, every tenth the same as one before."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(1)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a", "(b)", "\tc", "don't", "1,000"]
    for name, size in (("one", 700), ("two", 150), ("three", 9)):
        texts = []
        for index in range(size):
            length = generator.integers(1, 120)
            repeated = index % 10 == 9
            texts.append(
                texts[index // 2]
                if repeated
                else " ".join(generator.choice(words, length))
            )
        lines = [json.dumps({"text": t, "label": i % 3}) for i, t in enumerate(texts)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def documents(corpus) -> list[tuple[str, int]]:
    return [
        (values["text"], values["label"])
        for path in sorted(corpus.iterdir())
        for values in map(json.loads, path.read_text().splitlines())
    ]


def rows(folder, split="train"):
    """Reads records with TensorFlow, as they are stored."""
    found = manifest.load(str(folder))
    paths = [str(folder / shard.name) for shard in found.split(split).shards]
    parsed = schema.parse(
        next(iter(tf.data.TFRecordDataset(paths).batch(10**6))),
        sequence_length=found.sequence_length,
        dtype=found.dtype,
        labelled=found.labelled,
    )
    return {name: value.numpy() for name, value in parsed.items()}


@pytest.mark.parametrize(
    ("mode", "workers"),
    [
        ("packed", (1, 7)),
        ("labelled", (3,)),
        pytest.param("overlapping", (2,), marks=pytest.mark.slow),
        pytest.param("document", (2,), marks=pytest.mark.slow),
    ],
)
def test_workers_and_beam_write_the_same_bytes(
    corpus, tmp_path, monkeypatch, mode, workers
):
    """As in one process, whatever the number of workers."""
    monkeypatch.setattr(jobs, "_MIN_CHUNK_BYTES", 40_000)
    for number in (0, *workers):
        run(corpus, tmp_path / str(number), number, **MODES[mode])
    expected = hashes(tmp_path / "0")
    assert {"manifest.json", "train-00002-of-00003.tfrecord"} <= expected.keys()
    assert not [name for name in expected if "unfinished" in name or "partial" in name]
    for number in workers:
        assert hashes(tmp_path / str(number)) == expected
    config = Config(data=DataConfig(input=str(corpus), **SETTINGS, **MODES[mode]))
    pytest.importorskip("apache_beam")
    with engine.beam([]) as runner:
        preprocess.preprocess(jobs.plan(config), str(tmp_path / "beam"), runner)
    assert hashes(tmp_path / "beam") == expected


def test_beam_from_the_command_line(corpus, tmp_path):
    pytest.importorskip("apache_beam")
    arguments = [
        "--config=configs/quickstart.py",
        f"--input={corpus}",
        "--config.data.vocab_size=500",
    ]
    for name, more in (
        ("local", []),
        ("beam", ["--runner=beam", "--runner=DirectRunner", *BEAM]),
    ):
        found = run_program(
            "data_pipeline.preprocess",
            *arguments,
            f"--output_dir={tmp_path / name}",
            *more,
        )
        assert found.returncode == 0, found.stderr
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "local")


def test_beam_knows_the_options_of_the_documentation():
    pytest.importorskip("apache_beam")
    page = (ROOT / "docs" / "data.md").read_text()
    (command,) = re.findall(r"--runner=beam (--runner=Dataflow.*?)```", page, re.S)
    with engine.beam(command.replace("\\\n", " ").split()):
        pass


def test_an_unknown_option_of_beam_is_one_message(corpus, tmp_path):
    pytest.importorskip("apache_beam")
    arguments = ["--config=configs/quickstart.py", f"--input={corpus}"]
    found = run_program(
        "data_pipeline.preprocess",
        *arguments,
        f"--output_dir={tmp_path}",
        "--runner=beam",
        "--direct_num_workerz=2",
    )
    assert found.returncode == 2, found.stderr
    assert "knows no option --direct_num_workerz" in found.stderr
    without = run_program(
        "data_pipeline.preprocess",
        *arguments,
        f"--output_dir={tmp_path}",
        "--direct_num_workers=2",
    )
    assert without.returncode == 2


def test_bad_input_on_beam_is_one_message(tmp_path):
    pytest.importorskip("apache_beam")
    lines = ['{"text": "fine"}'] * 2000
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    found = run_program(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        f"--input={tmp_path / 'a.jsonl'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--config.data.tokenizer={vocabulary}",
        "--runner=beam",
    )
    assert found.returncode == 2, found.stderr
    assert "a.jsonl:2001: each line must be a JSON object" in found.stderr


def test_documents_are_truncated_or_padded(corpus, tmp_path):
    written = run(corpus, tmp_path, validation_fraction=0.0, **MODES["document"])
    tokenizer = load_encoder(tmp_path)
    start = tokenizer.token_to_id("<|start|>")
    assert written.added_tokens == ("<|start|>",)
    assert start == written.vocabulary_size - 1
    whole = [
        [start, *tokenizer.encode(text).ids, written.end_of_text_id]
        for text, _ in documents(corpus)
    ]
    found = rows(tmp_path)
    order_ = np.argsort(packing.stored_order(len(whole), seed=7, shuffle=True))
    for tokens, place in zip(whole, order_, strict=True):
        length = min(len(tokens), 64)
        assert found["length"][place] == length
        expected = [*tokens[:64], *[written.pad_id] * (64 - length)]
        assert found["tokens"][place].tolist() == expected
    split = written.split("train")
    assert split.tokens == sum(min(len(tokens), 64) for tokens in whole)
    assert split.truncated_documents == sum(len(tokens) > 64 for tokens in whole) > 0
    assert split.truncated_tokens == sum(max(len(tokens) - 64, 0) for tokens in whole)


def test_labels_stay_with_their_documents_and_padding_goes_left(corpus, tmp_path):
    written = run(
        corpus, tmp_path, validation_fraction=0.0, mode="labelled", padding_side="left"
    )
    tokenizer = load_encoder(tmp_path)
    found = rows(tmp_path)
    expected = {}
    for text, label in documents(corpus):
        tokens = [*tokenizer.encode(text).ids, written.end_of_text_id][:64]
        expected.setdefault(tuple(tokens), []).append(label)
    for row, length, label in zip(*found.values(), strict=True):
        assert (row[: 64 - length] == written.pad_id).all()
        expected[tuple(row[64 - length :])].remove(label)
    assert not any(expected.values())
    labels = [label for _, label in documents(corpus)]
    assert written.split("train").labels == {
        str(label): labels.count(label) for label in range(3)
    }


def test_the_side_of_the_padding_does_not_change_the_loss(corpus, tmp_path):
    """The reader turns the rows; transformers, with masks and positions, agrees."""
    settings = {"mode": "document", "vocab_size": 300, "sequence_length": 24}
    losses = []
    for side in ("left", "right"):
        folder = tmp_path / side
        written = run(corpus, folder, padding_side=side, **settings)
        gpt2 = tiny_model(n_positions=24, vocab_size=300)
        cut = {"split": "validation", "context_length": 24, "stride": 24}
        windows = Windows(str(folder), written, **cut)
        batch = next(iter(windows.batches(global_batch_size=16, batch_size=16)))
        loss, count = summed_loss(gpt2, batch["tokens"], batch["length"])
        losses.append((float(loss), float(count)))
    assert losses[0] == losses[1]
    stored = rows(tmp_path / "left", "validation")
    tokens, length = stored["tokens"][:16], stored["length"][:16]
    mask = (np.arange(24) >= 24 - length[:, None]).astype(np.int32)
    logits = gpt2(
        tokens,
        attention_mask=mask,
        position_ids=np.maximum(np.cumsum(mask, axis=1) - 1, 0),
    ).logits
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(tokens[:, 1:], logits[:, :-1])
    expected = float(tf.reduce_sum(each * (mask[:, :-1] * mask[:, 1:])))
    assert losses[0][0] == pytest.approx(expected, rel=1e-5)


def test_a_stride_makes_windows_that_overlap(corpus, tmp_path):
    plain = run(corpus, tmp_path / "plain", validation_fraction=0.0)
    dense = run(corpus, tmp_path / "dense", validation_fraction=0.0, stride=16)
    assert dense.split("train").tokens == plain.split("train").tokens
    num_tokens = dense.split("train").tokens
    assert dense.split("train").num_records == 1 + -(-(num_tokens - 64) // 16)
    streams = {}
    for name, stride in (("plain", 64), ("dense", 16)):
        found = rows(tmp_path / name)
        count = len(found["length"])
        places = packing.stored_order(count, seed=7, shuffle=True)
        stream = np.zeros(num_tokens, int)
        for record, tokens, length in zip(
            places, found["tokens"], found["length"], strict=True
        ):
            stream[record * stride :][:length] = tokens[:length]
        streams[name] = stream.tolist()
    assert streams["dense"] == streams["plain"]
    verify.verify_shards(str(tmp_path / "dense"), dense, "train")


def test_repetitions_are_left_out_before_the_split(corpus, tmp_path):
    written = run(corpus, tmp_path, deduplicate=True, mode="document")
    texts = [text for text, _ in documents(corpus)]
    skipped = sum(s.skipped.get("duplicate", 0) for s in written.splits.values())
    assert skipped == len(texts) - len(set(texts)) > 50
    assert sum(s.documents for s in written.splits.values()) == len(set(texts))


def test_validation_keeps_what_training_also_has(tmp_path):
    for name, texts in (("train", "abcdefgh"), ("validation", "aaxb")):
        lines = [json.dumps({"text": f"document {text}"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    written = run(
        tmp_path / "train.jsonl",
        tmp_path / "out",
        validation_input=str(tmp_path / "validation.jsonl"),
        deduplicate=True,
        mode="document",
        vocab_size=300,
    )
    train, validation = (written.split(name) for name in ("train", "validation"))
    assert (train.documents, train.skipped) == (6, {"duplicate": 2})
    assert (validation.documents, validation.skipped) == (3, {"duplicate": 1})


def test_special_tokens_in_the_text_where_they_are_allowed(tmp_path):
    (tmp_path / "a.txt").write_text("one <|endoftext|> two " * 50)
    for allowed in (False, True):
        written = run(
            tmp_path / "a.txt",
            tmp_path / str(allowed),
            validation_fraction=0.0,
            allow_special_tokens=allowed,
            vocab_size=300,
        )
        tokens = rows(tmp_path / str(allowed))["tokens"]
        # Padding is end-of-text, too, and only the last record has it.
        padding = tokens.size - written.split("train").tokens
        count = (tokens == written.end_of_text_id).sum() - padding
        assert count == (51 if allowed else 1)


def test_a_model_learns_new_tokens_of_the_dataset(corpus, tmp_path):
    """New rows are the mean of the others; the old rows and the tokenizer stay."""
    base = tmp_path / "base"
    size = run(corpus, base, validation_fraction=0.0).vocabulary_size
    gpt2 = tiny_model(vocab_size=size)
    gpt2.save_pretrained(tmp_path / "checkpoint", safe_serialization=True)
    for path in (base / "tokenizer").iterdir():
        (tmp_path / "checkpoint" / path.name).write_bytes(path.read_bytes())
    written = run(
        corpus,
        tmp_path / "more",
        tokenizer=str(tmp_path / "checkpoint"),
        sequence_length=16,
        start_token="<|start|>",
        end_token="<|end|>",
    )
    assert written.added_tokens == ("<|start|>", "<|end|>")
    assert (written.vocabulary_size, written.end_of_text_id) == (size + 2, size + 1)
    # What generates, and what an export brings, stops there.
    assert weights.load_tokenizer(str(tmp_path / "more" / "tokenizer")).eos_token == (
        "<|end|>"
    )
    config = tiny_config().model
    config.initial_checkpoint = str(tmp_path / "checkpoint")
    extended = create_model(config, written, seed=0)
    old = gpt2.transformer.wte.embeddings.numpy()
    new = extended.transformer.wte.embeddings.numpy()
    np.testing.assert_array_equal(new[:size], old)
    np.testing.assert_allclose(new[size:], [old.mean(axis=0)] * 2, rtol=1e-5, atol=1e-7)
    tokens = np.arange(16)[None]
    np.testing.assert_allclose(
        extended(tokens).logits[..., :size], gpt2(tokens).logits, atol=1e-5
    )
    other = run(corpus, tmp_path / "other", vocab_size=400, start_token="<|start|>")
    with pytest.raises(UserError, match="with the model's tokenizer"):
        create_model(config, other, seed=0)


class Corpus(tfds.core.GeneratorBasedBuilder):
    """WikiText-2's lines as a dataset, in their order."""

    name = "local_corpus"
    VERSION = tfds.core.Version("1.0.0")
    lines: tuple[str, ...] = ()

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"body": tfds.features.Text(), "kind": tfds.features.ClassLabel(names="ab")}
        )
        return tfds.core.DatasetInfo(
            builder=self, features=features, disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, line in enumerate(self.lines):
            yield index, {"body": line, "kind": index % 2}


def test_tfds_gives_what_files_give(tmp_path):
    lines = pathlib.Path(shared("wikitext-2/wiki.valid.raw")).read_text().split("\n")
    lines = [line for line in lines if line.strip()]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "text.txt").write_text("\n".join(lines))
    Corpus.lines = tuple(lines)
    Corpus(data_dir=str(tmp_path / "tfds")).download_and_prepare()
    settings = {"document": "line", "num_shards": 4}
    from_files = run(tmp_path / "files", tmp_path / "a", **settings)
    from_tfds = run(
        "tfds:local_corpus:1.0.0/train",
        tmp_path / "b",
        num_workers=2,
        tfds_data_dir=str(tmp_path / "tfds"),
        text_field="body",
        **settings,
    )
    assert from_tfds.splits == from_files.splits
    assert from_tfds.split("train").documents > 2000
    labelled = run(
        "tfds:local_corpus/train",
        tmp_path / "c",
        tfds_data_dir=str(tmp_path / "tfds"),
        text_field="body",
        label_field="kind",
        mode="labelled",
    )
    assert set(labelled.split("train").labels) == {"0", "1"}


def test_a_bucket_in_and_out(corpus, tmp_path, bucket):
    """The same bytes from and to a bucket; the tokenizer is there as well."""
    from tfrecords.storage import files

    for path in corpus.iterdir():
        files.write(f"{bucket}/in/{path.name}", path.read_bytes())
    run(corpus, tmp_path / "local")
    config = Config(data=DataConfig(input=f"{bucket}/in/*.jsonl", **SETTINGS))
    preprocess.preprocess(jobs.plan(config), f"{bucket}/out", in_process)
    names = files.expand(f"{bucket}/out")
    found = {name.removeprefix(f"{bucket}/out/"): files.read(name) for name in names}
    expected = {
        str(path.relative_to(tmp_path / "local")): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    assert found == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_document_has_windows_of_its_own(corpus, tmp_path, side):
    settings = {"mode": "document", "vocab_size": 300, "sequence_length": 24}
    written = run(corpus, tmp_path / "data", padding_side=side, **settings)
    whole = read(tmp_path / "data", written, context_length=24, stride=24)
    assert len(whole) == written.split("validation").documents
    found = read(tmp_path / "data", written, context_length=10, stride=4)
    expected = [
        pair for tokens, length, _ in whole for pair in by_hand(tokens[:length], 10, 4)
    ]
    assert [(t[:n].tolist(), first) for t, n, first in found] == expected
