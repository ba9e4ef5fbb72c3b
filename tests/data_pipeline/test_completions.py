"""Prompts and completions: what is in a record, and what is learnt of it."""

import csv
import json

import numpy as np
import pytest

from configs.errors import DataError
from data_pipeline.tokens import completions
from tests.data_pipeline.runs import load_encoder, run
from tfrecords import inspect, manifest
from tfrecords.windows import Windows


@pytest.mark.parametrize(
    ("num_prompt", "num_completion", "expected"),
    [
        (3, 2, "ppp" + "cc"),
        (5, 3, "ppppp" + "ccc"),
        (9, 3, "ppppp" + "ccc"),  # the prompt loses its beginning
        (9, 7, "p" + "ccccccc"),
        (9, 9, "p" + "ccccccc"),  # and then the completion its end
        (1, 9, "p" + "ccccccc"),
    ],
)
def test_the_prompt_is_cut_from_the_left(num_prompt, num_completion, expected):
    prompt, completion = np.arange(num_prompt), 100 + np.arange(num_completion)
    whole = np.concatenate([prompt, completion])
    tokens, mask = completions.fit(whole, (whole >= 100).astype("u1"), 8)
    assert "".join("pc"[bit] for bit in mask) == expected
    num_kept = expected.count("p")
    assert tokens[:num_kept].tolist() == prompt[-num_kept:].tolist()
    assert tokens[num_kept:].tolist() == completion[: expected.count("c")].tolist()


def write_examples(path, num=300):
    """Prompts of 1 to 30 words, completions of 1 to 3; returns them."""
    generator = np.random.default_rng(0)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a"]
    examples = [
        {
            "prompt": f"{number} " + " ".join(generator.choice(words, 1 + number % 30)),
            "completion": " " + " ".join(generator.choice(words, 1 + number % 3)),
        }
        for number in range(num)
    ]
    if path.suffix == ".csv":
        with open(path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(examples)
    else:
        path.write_text("\n".join(map(json.dumps, examples)))
    return examples


def read(folder, written, split):
    length = written.sequence_length
    windows = Windows(
        str(folder), written, split=split, context_length=length, stride=length
    )
    batches = windows.batches(global_batch_size=1, batch_size=1).unbatch()
    return list(batches.as_numpy_iterator())


@pytest.mark.parametrize(
    ("per_record", "side", "name"),
    [("one", "left", "a.csv"), ("several", "right", "a.jsonl")],
)
def test_the_mask_tells_the_completions(tmp_path, per_record, side, name):
    examples = write_examples(tmp_path / name)
    folder = tmp_path / "data"
    written = run(
        tmp_path / name,
        folder,
        mode="completion",
        completions_per_record=per_record,
        padding_side=side,
        sequence_length=24,
        min_chunk_bytes=4_000,
    )
    assert written == manifest.load(str(folder))
    assert inspect.inspect(str(folder), read_records=True, num_examples=1)["verified"]
    encoder, found = load_encoder(folder), []
    for split in written.splits:
        counts = written.split(split)
        rows = read(folder, written, split)
        assert len(rows) == counts.num_records == counts.rows
        assert (counts.rows == counts.documents) == (per_record == "one")
        for row in rows:
            tokens, mask = (row[key][: row["length"]] for key in ("tokens", "mask"))
            assert not row["mask"][row["length"] :].any()
            starts = np.flatnonzero(np.diff(mask, prepend=1) == -1)
            for part in np.split(np.stack([tokens, mask]), starts[1:], axis=1):
                prompt, completion = (part[0][part[1] == bit] for bit in (0, 1))
                assert completion[-1] == written.end_of_text_id
                found.append((prompt.tolist(), completion[:-1].tolist()))
    expected = [
        [encoder.encode(text).ids for text in example.values()] for example in examples
    ]
    room = 24 - 1
    cut = [(p[-max(room - len(c), 1) :], c) for p, c in expected]
    assert sorted(found) == sorted(cut)
    splits = written.splits.values()
    num_cut = sum(len(p) - len(q) for (p, _), (q, _) in zip(expected, cut, strict=True))
    assert sum(split.truncated_tokens for split in splits) == num_cut > 0


def test_any_number_of_workers_packs_alike(tmp_path):
    write_examples(tmp_path / "a.jsonl")
    fields = {"mode": "completion", "completions_per_record": "several"}
    one, two = (
        run(
            tmp_path / "a.jsonl",
            tmp_path / str(num),
            num,
            min_chunk_bytes=4_000,
            **fields,
        )
        for num in (0, 2)
    )
    assert one == two  # also the shards' checksums


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x"}, "the field 'prompt' and 'completion'"),
        ({"prompt": "", "completion": "y"}, "must hold text. Received: 0 and 1 bytes"),
        ({"prompt": "x", "completion": ""}, "Received: 1 and 0 bytes"),
        ({"prompt": "x", "completion": 3}, "'completion' must be a string"),
    ],
)
def test_an_example_without_one_of_both_is_named(tmp_path, line, message):
    good = json.dumps({"prompt": "What?", "completion": " That."})
    (tmp_path / "a.jsonl").write_text(f"{good}\n{json.dumps(line)}\n")
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        run(tmp_path / "a.jsonl", tmp_path / "data", mode="completion")


def test_plain_text_has_no_completions(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="Completion data must have fields 'prompt'"):
        run(tmp_path, tmp_path / "data", mode="completion", validation_fraction=0.0)
