"""Modes, special tokens, repetitions, TFDS and buckets."""

import json

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from configs.schema import Config, DataConfig
from data_pipeline import pipeline
from data_pipeline.job import plan_job
from data_pipeline.records import packing
from tests.conftest import summed_loss, tiny_config, tiny_model
from tests.data_pipeline.runs import (
    SETTINGS,
    in_process,
    load_encoder,
    run,
)
from tests.tfrecords.test_windows import by_hand, read
from tfrecords import inspect, manifest, schema, verify
from tfrecords.windows import Windows
from trainer.models.create import create_model
from trainer.models.gpt2 import weights


def documents(labelled_corpus) -> list[tuple[str, int]]:
    return [
        (values["text"], values["label"])
        for path in sorted(labelled_corpus.iterdir())
        for values in map(json.loads, path.read_text().splitlines())
    ]


def rows(folder, split="train"):
    """Reads records with TensorFlow, as they are stored."""
    dataset = manifest.load(str(folder))
    paths = [str(folder / shard.name) for shard in dataset.split(split).shards]
    parsed = schema.parse(
        next(iter(tf.data.TFRecordDataset(paths).batch(10**6))),
        sequence_length=dataset.sequence_length,
        dtype=dataset.dtype,
        labelled=dataset.labelled,
    )
    return {name: value.numpy() for name, value in parsed.items()}


def test_documents_are_truncated_or_padded(labelled_corpus, tmp_path):
    written = run(
        labelled_corpus,
        tmp_path,
        validation_fraction=0.0,
        mode="document",
        start_token="<|start|>",
    )
    tokenizer = load_encoder(tmp_path)
    start = tokenizer.token_to_id("<|start|>")
    assert written.added_tokens == ("<|start|>",)
    assert start == written.vocabulary_size - 1
    whole = [
        [start, *tokenizer.encode(text).ids, written.end_of_text_id]
        for text, _ in documents(labelled_corpus)
    ]
    stored = rows(tmp_path)
    order_ = np.argsort(packing.stored_order(len(whole), seed=7, shuffle=True))
    for tokens, place in zip(whole, order_, strict=True):
        length = min(len(tokens), 64)
        assert stored["length"][place] == length
        expected = [*tokens[:64], *[written.pad_id] * (64 - length)]
        assert stored["tokens"][place].tolist() == expected
    split = written.split("train")
    assert split.tokens == sum(min(len(tokens), 64) for tokens in whole)
    assert split.truncated_documents == sum(len(tokens) > 64 for tokens in whole) > 0
    assert split.truncated_tokens == sum(max(len(tokens) - 64, 0) for tokens in whole)


def test_labels_stay_with_their_documents_and_padding_goes_left(
    labelled_corpus, tmp_path
):
    written = run(
        labelled_corpus,
        tmp_path,
        validation_fraction=0.0,
        mode="labelled",
        padding_side="left",
    )
    tokenizer = load_encoder(tmp_path)
    stored = rows(tmp_path)
    expected = {}
    for text, label in documents(labelled_corpus):
        tokens = [*tokenizer.encode(text).ids, written.end_of_text_id][:64]
        expected.setdefault(tuple(tokens), []).append(label)
    for row, length, label in zip(*stored.values(), strict=True):
        assert (row[: 64 - length] == written.pad_id).all()
        expected[tuple(row[64 - length :])].remove(label)
    assert not any(expected.values())
    labels = [label for _, label in documents(labelled_corpus)]
    assert written.split("train").labels == {
        str(label): labels.count(label) for label in range(3)
    }


def test_named_labels_are_numbered_alike_in_all_chunks(tmp_path):
    """The chunks see the names in other orders; one is an integer, and so a name."""
    texts = [f"text {number} " + "word " * 40 for number in range(600)]
    names = [("so-so", "bad", "10")[number // 50 % 3] for number in range(600)]
    names[0] = "good"
    rows_ = [{"text": t, "label": n} for t, n in zip(texts, names, strict=True)]
    path = tmp_path / "reviews.jsonl"
    path.write_text("\n".join(map(json.dumps, rows_)))
    folder = tmp_path / "data"
    written = run(
        path, folder, mode="labelled", min_chunk_bytes=10_000, end_token="", seed=0
    )
    assert written == manifest.load(str(folder))
    assert written.label_names == ("10", "bad", "good", "so-so")
    assert set(written.labels) <= {*written.label_names}
    (example,) = inspect.inspect(str(folder), read_records=False, num_examples=1)[
        "examples"
    ]
    assert names[texts.index(example["text"])] == example["label"]
    decode = load_encoder(folder).decode
    name_of = dict(zip(texts, names, strict=True))
    classes = ("so-so", "good", "bad")  # of a model that knows no "10"
    seen = 0
    for split, order_ in (("train", classes), ("validation", ())):
        windows = Windows(
            *(str(folder), written),
            split=split,
            context_length=64,
            stride=64,
            labels=order_,
        )
        batches = windows.batches(global_batch_size=1, batch_size=1).unbatch()
        for row in batches.as_numpy_iterator():
            name = name_of[decode(row["tokens"][: row["length"]].tolist())]
            known = [*(order_ or written.labels), name]
            assert row["label"] == (known.index(name) if name in known[:-1] else -1)
            seen += 1
    assert seen == 600


def test_the_side_of_the_padding_does_not_change_the_loss(labelled_corpus, tmp_path):
    """The reader turns the rows; transformers, with masks and positions, agrees."""
    settings = {"mode": "document", "vocab_size": 300, "sequence_length": 24}
    losses = []
    for side in ("left", "right"):
        folder = tmp_path / side
        written = run(labelled_corpus, folder, padding_side=side, **settings)
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


def test_a_stride_makes_windows_that_overlap(labelled_corpus, tmp_path):
    plain = run(labelled_corpus, tmp_path / "plain", validation_fraction=0.0)
    dense = run(labelled_corpus, tmp_path / "dense", validation_fraction=0.0, stride=16)
    assert dense.split("train").tokens == plain.split("train").tokens
    num_tokens = dense.split("train").tokens
    assert dense.split("train").num_records == 1 + -(-(num_tokens - 64) // 16)
    streams = {}
    for name, stride in (("plain", 64), ("dense", 16)):
        stored = rows(tmp_path / name)
        count = len(stored["length"])
        places = packing.stored_order(count, seed=7, shuffle=True)
        stream = np.zeros(num_tokens, int)
        for record, tokens, length in zip(
            places, stored["tokens"], stored["length"], strict=True
        ):
            stream[record * stride :][:length] = tokens[:length]
        streams[name] = stream.tolist()
    assert streams["dense"] == streams["plain"]
    verify.verify_shards(str(tmp_path / "dense"), dense, "train")


def test_repetitions_are_left_out_before_the_split(labelled_corpus, tmp_path):
    written = run(labelled_corpus, tmp_path, deduplicate=True, mode="document")
    texts = [text for text, _ in documents(labelled_corpus)]
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


def test_special_tokens_in_the_text_are_text_unless_allowed(tmp_path):
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


def test_a_model_learns_new_tokens_of_the_dataset(labelled_corpus, tmp_path):
    """New rows are the mean of the others; the old rows and the tokenizer stay."""
    base = tmp_path / "base"
    size = run(labelled_corpus, base, validation_fraction=0.0).vocabulary_size
    gpt2 = tiny_model(vocab_size=size)
    gpt2.save_pretrained(tmp_path / "checkpoint", safe_serialization=True)
    for path in (base / "tokenizer").iterdir():
        (tmp_path / "checkpoint" / path.name).write_bytes(path.read_bytes())
    written = run(
        labelled_corpus,
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
    other = run(
        labelled_corpus, tmp_path / "other", vocab_size=400, start_token="<|start|>"
    )
    with pytest.raises(UserError, match="with the model's tokenizer"):
        create_model(config, other, seed=0)


def test_a_bucket_can_hold_the_input_and_the_dataset(labelled_corpus, tmp_path, bucket):
    """The same bytes from and to a bucket; the tokenizer is there as well."""
    from tfrecords.storage import files

    for path in labelled_corpus.iterdir():
        files.write(f"{bucket}/in/{path.name}", path.read_bytes())
    run(labelled_corpus, tmp_path / "local")
    config = Config(data=DataConfig(input=f"{bucket}/in/*.jsonl", **SETTINGS))
    pipeline.preprocess(plan_job(config), f"{bucket}/out", in_process)
    names = files.expand(f"{bucket}/out")
    stored = {name.removeprefix(f"{bucket}/out/"): files.read(name) for name in names}
    expected = {
        str(path.relative_to(tmp_path / "local")): path.read_bytes()
        for path in (tmp_path / "local").rglob("*")
        if path.is_file()
    }
    assert stored == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_each_document_has_windows_of_its_own(labelled_corpus, tmp_path, side):
    settings = {"mode": "document", "vocab_size": 300, "sequence_length": 24}
    written = run(labelled_corpus, tmp_path / "data", padding_side=side, **settings)
    whole = read(tmp_path / "data", written, context_length=24, stride=24)
    assert len(whole) == written.split("validation").documents
    windows = read(tmp_path / "data", written, context_length=10, stride=4)
    expected = [
        pair for tokens, length, _ in whole for pair in by_hand(tokens[:length], 10, 4)
    ]
    assert [(t[:n].tolist(), first) for t, n, first in windows] == expected
