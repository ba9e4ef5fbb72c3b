"""Damages everything that is kept, at random places: noticed, or without any effect.

A dataset, a run, its checkpoint and its export are read as the programs read them.
"""

import dataclasses
import json
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import tensorflow as tf
from absl import logging

from configs.errors import DataError, UserError
from tfrecords import checksums, inspect, reader, verify
from tfrecords import manifest as manifests
from trainer.checkpoints import folders, pretrained, run_checkpoints
from trainer.exporting import folders as exports
from trainer.exporting import huggingface
from trainer.models.gpt2 import weights
from trainer.reporting import runs
from trainer.run_dir import layout, plans, results

TEXT = "The quick brown fox.  \n It's 2 \N{SNOWMAN}<|endoftext|>"


def flip(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    changed = content[place] ^ (1 << rng.randrange(8))
    return content[:place] + bytes([changed]) + content[place + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def insert(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.randbytes(rng.randint(1, 9)) + content[place:]


def swap(content: bytes, rng: random.Random) -> bytes:
    size = min(rng.randint(1, 40), len(content) // 2)
    first = rng.randrange(len(content) - 2 * size + 1)
    second = rng.randint(first + size, len(content) - size)
    changed = bytearray(content)
    changed[first : first + size] = content[second : second + size]
    changed[second : second + size] = content[first : first + size]
    return bytes(changed)


def delete(content: bytes, rng: random.Random) -> bytes:
    place = rng.randrange(len(content))
    return content[:place] + content[place + rng.randint(1, 40) :]


DAMAGES = (flip, cut, insert, swap, delete)


def read_tokenizer(folder: pathlib.Path) -> list[Any]:
    tokenizer = weights.load_tokenizer(str(folder))
    return [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.model_max_length,
        tokenizer.encode(TEXT),
        tokenizer.decode(range(0, 400, 7)),
    ]


def read_dataset(folder: pathlib.Path) -> list[Any]:
    """As `make inspect` and training do."""
    found = inspect.inspect(str(folder), read_records=True, num_examples=1)
    return [found, manifests.load(str(folder)), read_tokenizer(folder / "tokenizer")]


def read_batches(folder: pathlib.Path) -> list[Any]:
    """As training alone does, which reads no SHA-256 of shards."""
    manifest = manifests.load(str(folder))
    verify.verify_files(str(folder), manifest)
    for split in manifest.splits:
        verify.verify_shards(str(folder), manifest, split)
    size = manifest.split("train").num_records
    batches = reader.training_batches(
        str(folder),
        manifest,
        global_batch_size=size,
        batch_size=size,
        start_step=0,
        num_steps=1,
        seed=0,
    )
    with reader.translate_data_loss_errors(str(folder), manifest):
        return [
            {k: v.tolist() for k, v in b.items()} for b in batches.as_numpy_iterator()
        ]


def read_checkpoint(workdir: pathlib.Path) -> list[Any]:
    """The record and the bytes of the weights, which decide all that is loaded."""
    newest = folders.newest_intact(
        folders.list_folders(folders.root(str(workdir))), set_aside=False
    )
    if newest is None:
        run_checkpoints.load_model(str(workdir))  # it says so
    return [newest, pathlib.Path(newest[0], folders.STATE).read_bytes()]


def read_run(workdir: pathlib.Path) -> list[Any]:
    """As `make report` and `make generate` do."""
    run = runs.read(str(workdir), "run")
    pretrained.verify_run_files(str(workdir))
    return [dataclasses.asdict(run), read_tokenizer(workdir / "tokenizer")]


def read_export(folder: pathlib.Path) -> list[Any]:
    """As `--checkpoint` does."""
    checksums.verify_list(str(folder))
    values = [variable.numpy() for variable in weights.load(str(folder)).variables]
    shapes = [(value.shape, value.tobytes()) for value in values]
    return [shapes, read_tokenizer(folder)]


@pytest.fixture(scope="module")
def kept(small_run, tmp_path_factory) -> pathlib.Path:
    """A folder with `data`, `run` (one checkpoint, a result, a plan) and `export`."""
    folder = tmp_path_factory.mktemp("kept")
    for name in ("data", "run"):
        shutil.copytree(small_run / name, folder / name)
    workdir = str(folder / "run")
    for old in folders.list_folders(folders.root(workdir))[:-1]:
        shutil.rmtree(old)
    plans.save(workdir, {"tpu_type": "v3-8", "fits": True, "planned_for": {"a": 1}})
    results.save(
        workdir, {"step": 6, "loss": 5.25, "protocol": {"split": "validation"}}
    )
    trained = pretrained.load(workdir, 0, "")
    tokenizer = weights.load_tokenizer(trained.tokenizer)
    with exports.temporary(str(folder / "export")) as made:
        huggingface.save(trained.model, tokenizer, made, tf.float32)
        (made / exports.MODEL_CARD).write_text("# A model")
        exports.place(made, str(folder / "export"))
    return folder


def targets(kept: pathlib.Path) -> list[tuple[pathlib.Path, Callable, pathlib.Path]]:
    """Returns (file, reader, folder that the reader takes) of all files that are kept.

    Pictures, and what TensorBoard reads, are for people: nothing of ours reads them.
    """
    data, run, export = (kept / name for name in ("data", "run", "export"))
    listed = []
    for path in sorted(path for path in kept.rglob("*") if path.is_file()):
        if data in path.parents:
            listed.append((path, read_dataset, data))
            if path.suffix == ".tfrecord":
                listed.append((path, read_batches, data))
        elif export in path.parents:
            listed.append((path, read_export, export))
        elif layout.CHECKPOINTS in path.parts:
            listed.append((path, read_checkpoint, run))
        elif path.suffix in (".json", ".jsonl", ".txt"):
            listed.append((path, read_run, run))
    return listed


def is_shorter_log(path: pathlib.Path, before: bytes) -> bool:
    """Whether whole lines at the end of a log are missing, as after a kill."""
    after = path.read_bytes()
    return path.suffix == ".jsonl" and before.startswith(after) and after[-1:] in b"\n"


def outcome(
    path: pathlib.Path, read: Callable, folder: pathlib.Path, expected: Any
) -> str:
    """Returns what reading a damaged file leads to; only errors for users may arise."""
    try:
        result = read(folder)
    except (UserError, DataError) as error:
        message = str(error)
        names = (path.name, path.parent.name, "which has none")
        assert any(name in message for name in names), message
        assert "Traceback" not in message
        return "an error"
    return "no effect" if result == expected else "another result"


@pytest.mark.parametrize(
    "rounds", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_damage_is_noticed_or_has_no_effect(kept, rounds, monkeypatch, capsys):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda *args: warnings.append(args))
    rng = random.Random(rounds)
    expected = {read: read(folder) for _, read, folder in targets(kept)}
    counts: dict[str, int] = {}
    for path, read, folder in targets(kept):
        before = path.read_bytes()
        damages = DAMAGES * rounds if rounds > 1 else rng.sample(DAMAGES, 1)
        for damage in damages:
            after = damage(before, rng)
            if after == before:
                continue
            warnings.clear()
            path.write_bytes(after)
            what = outcome(path, read, folder, expected[read])
            if what == "another result":
                is_told = warnings or is_shorter_log(path, before)
                assert is_told, (path, damage.__name__, after)
                what = "a warning, or the log of an earlier stop"
            counts[what] = counts.get(what, 0) + 1
            path.write_bytes(before)
    with capsys.disabled():
        print(f"\n{sum(counts.values())} corruptions: {json.dumps(counts)}")
    assert counts["an error"] > 0.8 * sum(counts.values())


def test_a_file_that_is_missing_is_noticed(kept):
    """But for what a run may not have: logs, plans, results, and of old ones more."""
    run = kept / "run"
    optional = {run / "manifest.json", *run.glob("*.jsonl"), *run.glob("[pe]*/*.json")}
    expected = {read: read(folder) for _, read, folder in targets(kept)}
    for path, read, folder in targets(kept):
        before = path.read_bytes()
        path.unlink()
        what = outcome(path, read, folder, expected[read])
        is_read = path.name not in (exports.MODEL_CARD, checksums.LIST_NAME)
        if path not in optional:
            assert what == ("an error" if is_read else "no effect"), path
        path.write_bytes(before)


def test_a_file_beside_the_tokenizer_is_noticed(kept):
    path = kept / "data" / "tokenizer" / "added_tokens.json"
    path.write_text('{"new": 400}')
    assert outcome(path, read_dataset, kept / "data", None) == "an error"
    path.unlink()


def test_folders_without_checksums_are_read(kept, tmp_path):
    """Those of older versions."""
    for name in ("data", "run", "export"):
        shutil.copytree(kept / name, tmp_path / name)
    for path in tmp_path.rglob("*.json*"):
        if path.parent.name == "tokenizer" or "export" in path.parts:
            continue
        lines = (
            path.read_text().splitlines()
            if path.suffix == ".jsonl"
            else [path.read_text()]
        )
        values = [checksums.unsealed(json.loads(line)) for line in lines]
        for value in values:
            value.pop("other_files", None)
        path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    (tmp_path / "export" / checksums.LIST_NAME).unlink()
    assert read_dataset(tmp_path / "data")[0] == read_dataset(kept / "data")[0]
    old, new = (folder / "run" for folder in (tmp_path, kept))
    assert read_checkpoint(old)[1] == read_checkpoint(new)[1]
    assert read_run(old)[0]["metrics"] == read_run(new)[0]["metrics"]
    assert read_export(tmp_path / "export") == read_export(kept / "export")
    path = tmp_path / "data" / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text().replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(DataError, match="must hold the tokenizer"):
        read_dataset(tmp_path / "data")
