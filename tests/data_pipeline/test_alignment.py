"""Records that begin at documents: no token is lost, and padding is counted exactly."""

import json
import pydoc_data.topics

import numpy as np
import pytest

from data_pipeline.records import packing
from data_pipeline.tokens import encoder as encoders
from tests.data_pipeline.runs import LENGTH, load_encoder, run
from tests.data_pipeline.test_completions import read as read_split
from tests.data_pipeline.test_modes import rows
from tests.tfrecords.test_windows import read
from tfrecords import inspect, manifest, tfds_metadata

TEXT = "".join(pydoc_data.topics.topics[name] for name in ("class", "import", "with"))
# Tokens with the end token: among them those that fill a record, and more than one.
SIZES = [2, 30, 32, 64, 2, 65, 20, 128, 63, 2, 40, 24, 300, 10, 2, 130, 62, 64, 64, 9]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text(TEXT)
    run(folder / "text.txt", folder / "data", validation_fraction=0.0, num_shards=1)
    return folder / "data"


def text_of(num_tokens, encode, start):
    """Returns a piece of real text, of so many tokens, which is not blank."""
    while TEXT[start].isspace():
        start += 1
    for end in range(start + num_tokens, len(TEXT)):
        if len(encode(TEXT[start:end]).ids) == num_tokens:
            return TEXT[start:end]
    raise AssertionError(num_tokens)


@pytest.fixture(scope="module")
def corpus(tokenizer, tmp_path_factory):
    """Documents of the sizes, with empty ones between; and many of random sizes."""
    encode = load_encoder(tokenizer).encode
    sizes = [*SIZES, *np.random.default_rng(0).integers(2, 200, 150).tolist()]
    texts = [
        text_of(size - 1, encode, start=7 * number) for number, size in enumerate(sizes)
    ]
    for place in (3, 10, 40):
        texts.insert(place, " \n")
    path = tmp_path_factory.mktemp("documents") / "a.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    return path


def by_hand(documents, length):
    """Packs whole documents one after the other, as long as they fit."""
    records, current = [], []
    for document in documents:
        if len(current) + len(document) > length and current:
            records.append(current)
            current = []
        current = current + document
        while len(current) > length:
            records.append(current[:length])
            current = current[length:]
    return [*records, current] if current else records


@pytest.mark.parametrize("block_bytes", [1 << 20, 100])
@pytest.mark.parametrize("end_token", [None, ""])
def test_documents_are_packed_whole(
    corpus, tokenizer, tmp_path, monkeypatch, block_bytes, end_token
):
    """Also where a document is encoded in several batches."""
    monkeypatch.setattr(encoders, "BLOCK_BYTES", block_bytes)
    blocks = encoders.ReferenceEncoder.blocks
    monkeypatch.setattr(blocks, "__defaults__", (block_bytes,))
    written = run(
        corpus,
        tmp_path,
        tokenizer=str(tokenizer / "tokenizer"),
        align="document",
        end_token=end_token,
        validation_fraction=0.0,
    )
    end = [written.end_of_text_id] if end_token is None else []
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    encode = load_encoder(tokenizer).encode
    documents = [[*encode(text).ids, *end] for text in texts if text.strip()]
    if end:
        assert [len(document) for document in documents][: len(SIZES)] == SIZES
    expected = by_hand(documents, LENGTH)
    stored = rows(tmp_path)
    order = packing.stored_order(len(expected), seed=7, shuffle=True)
    for place, record in enumerate(order):
        length = stored["length"][place]
        tokens = stored["tokens"][place].tolist()
        assert tokens[:length] == expected[record]
        assert set(tokens[length:]) <= {written.pad_id}
    split = written.split("train")
    assert split.num_records == split.rows == len(stored["length"]) == len(expected)
    assert split.tokens == sum(map(len, documents)) == stored["length"].sum()
    scored = read_split(tmp_path, written, "train")
    assert sum(int(row["length"]) for row in scored) == split.tokens
    assert (split.truncated_tokens, split.skipped) == (0, {"empty": 3})
    described = inspect.inspect(str(tmp_path), read_records=True, num_examples=1)
    share = described["splits"]["train"]["padding_share"]
    assert share == pytest.approx(1 - split.tokens / (split.rows * LENGTH))
    assert 0 < share < 0.5


def test_validation_is_scored_as_one_stream(corpus, tokenizer, tmp_path):
    """Each token once, whatever the records: as with plain packing."""
    fields = {
        "tokenizer": str(tokenizer / "tokenizer"),
        "validation_input": str(corpus),
    }
    (tmp_path / "train.txt").write_text(TEXT)
    plain, aligned = (
        (folder, run(tmp_path / "train.txt", folder, align=folder.name, **fields))
        for folder in (tmp_path / "none", tmp_path / "document")
    )
    num_records = [data.split("validation").num_records for _, data in (plain, aligned)]
    assert num_records[0] < num_records[1]
    for context_length, stride in ((64, 64), (50, 20)):
        cut = {"context_length": context_length, "stride": stride}
        expected, windows = read(*plain, **cut), read(*aligned, **cut)
        assert len(windows) == len(expected) > 1
        for window, other in zip(windows, expected, strict=True):
            assert [np.array(part).tolist() for part in window] == [
                np.array(part).tolist() for part in other
            ]


def test_any_number_of_workers_aligns_alike(corpus, tokenizer, tmp_path):
    fields = {"tokenizer": str(tokenizer / "tokenizer"), "min_chunk_bytes": 4_000}
    one, two = (
        run(corpus, tmp_path / str(num), num, align="document", **fields)
        for num in (0, 2)
    )
    assert one == two == manifest.load(str(tmp_path / "0"))  # also the checksums


def test_all_records_have_a_length_for_others(corpus, tokenizer, tmp_path):
    for align, names in (("none", {"tokens"}), ("document", {"tokens", "length"})):
        folder = tmp_path / align
        written = run(
            corpus, folder, tokenizer=str(tokenizer / "tokenizer"), align=align
        )
        features = json.loads(tfds_metadata.contents(written)["features.json"])
        assert set(features["featuresDict"]["features"]) == names
        assert ("align" in written.config) == (align == "document")
