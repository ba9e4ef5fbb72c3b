"""The whole of preprocessing, on real text where it is there, in real processes."""

import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tokenizers

from configs.errors import DataError, UserError
from configs.schema import Config, DataConfig
from data_pipeline import (
    chunks,
    dataset_folder,
    engine,
    packing,
    preprocess,
    shards,
    sources,
)
from data_pipeline import job as jobs
from data_pipeline.documents import Document
from data_pipeline.tokenizer import END_OF_TEXT
from tests.conftest import assert_refused, run_program, shared
from tfrecords import manifest, schema
from tfrecords.storage import files

LENGTH = 64
SETTINGS = {
    "tokenizer": "train",
    "vocab_size": 500,
    "sequence_length": LENGTH,
    "num_shards": 3,
    "seed": 7,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Four files of documents in several scripts, one of them of many lines."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a", "(b)", "\tc", "don't", "1,000"]
    for name, size in (("one", 40), ("two", 900), ("three", 3000), ("four", 5)):
        lines = [
            json.dumps({"text": " ".join(generator.choice(words, 20))})
            for _ in range(size)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def small_chunks(monkeypatch):
    """So that a small corpus has many chunks."""
    monkeypatch.setattr(jobs, "_MIN_CHUNK_BYTES", 40_000)


def in_process(function, items):
    return map(function, items)


def run(
    corpus, output_dir, num_workers=0, *, overwrite=False, **fields
) -> manifest.Manifest:
    """Preprocesses in this process, or with that many worker processes."""
    config = Config(data=DataConfig(**{"input": str(corpus), **SETTINGS, **fields}))
    job, here = jobs.plan(config), contextlib.nullcontext(in_process)
    with engine.local(num_workers) if num_workers else here as runner:
        return preprocess.preprocess(job, str(output_dir), runner, overwrite=overwrite)


def load_encoder(folder: pathlib.Path) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    encoder.encode_special_tokens = True
    return encoder


def hashes(folder: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def stored_records(folder, split) -> list[tuple[list[int], int]]:
    """Reads the shards with TensorFlow's reader, in the order of the manifest."""
    found = manifest.load(str(folder))
    paths = [str(folder / shard.name) for shard in found.split(split).shards]
    batches = tf.data.TFRecordDataset(paths).batch(64)
    records = []
    for serialized in batches:
        parsed = schema.parse(
            serialized, sequence_length=found.sequence_length, dtype=found.dtype
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


@pytest.mark.usefixtures("small_chunks")
def test_no_token_is_lost(corpus, tmp_path):
    """Shards, unshuffled, are the tokenizer's output for the corpus, document by
    document, computed here without chunks, pieces or packing."""
    written = run(corpus, tmp_path, num_workers=2)
    encoder = load_encoder(tmp_path)
    end = encoder.token_to_id(END_OF_TEXT)
    expected = {"train": [], "validation": []}
    counts = {"train": [0, 0, 0], "validation": [0, 0, 0]}
    for path in sorted(corpus.iterdir()):
        for line in path.read_text().splitlines():
            text = json.loads(line)["text"]
            split = chunks.split_of(Document((text.encode(),)), 0.1)
            expected[split] += [*encoder.encode(text).ids, end]
            for index, number in enumerate((1, len(text.split()), len(text.encode()))):
                counts[split][index] += number
    for split, tokens in expected.items():
        assert unshuffled_tokens(tmp_path, split, seed=7) == tokens
        found = written.split(split)
        assert [found.documents, found.words, found.bytes] == counts[split]
        assert found.tokens == len(tokens)
    # About a tenth of the documents is held out, and training is really shuffled.
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
        {t for t in texts if chunks.split_of(Document((t,)), share) == "validation"}
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


@pytest.mark.usefixtures("small_chunks")
def test_finished_chunks_are_not_done_again(corpus, tmp_path, monkeypatch):
    run(corpus, tmp_path / "whole")
    # Stop between the passes: all chunks are done, no shard is.
    with monkeypatch.context() as patch:
        patch.setattr(shards, "plan", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path / "stopped")
    work = tmp_path / "stopped" / ".unfinished"
    times = {path: path.stat().st_mtime_ns for path in work.glob("*.tokens")}
    assert len(times) > 4

    kept = {}

    def keep_times(*arguments):
        kept.update({path: path.stat().st_mtime_ns for path in times})
        return plan_shards(*arguments)

    plan_shards = shards.plan
    monkeypatch.setattr(shards, "plan", keep_times)
    run(corpus, tmp_path / "stopped")
    assert kept == times
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")


def command(corpus, output_dir, *arguments):
    return [
        "--config=configs/quickstart.py",
        f"--input={corpus}",
        f"--output_dir={output_dir}",
        "--config.data.vocab_size=500",
        *arguments,
    ]


def test_a_finished_dataset_is_kept_and_never_replaced_unasked(corpus, tmp_path):
    one, two = corpus / "one.jsonl", corpus / "two.jsonl"
    for _ in range(2):
        found = run_program("data_pipeline.preprocess", *command(two, tmp_path))
        assert found.returncode == 0, found.stderr
    assert "holds this dataset already" in found.stderr
    before = hashes(tmp_path)
    found = run_program("data_pipeline.preprocess", *command(one, tmp_path))
    assert found.returncode == 2
    assert "made with other input" in found.stderr
    assert hashes(tmp_path) == before
    found = run_program(
        "data_pipeline.preprocess",
        *command(two, tmp_path, "--overwrite", "--config.data.num_shards=2", "--json"),
    )
    assert found.returncode == 0, found.stderr
    shards = json.loads(found.stdout)["splits"]["train"]["shards"]
    assert sorted(path.name for path in tmp_path.glob("train-*")) == [
        shard["name"] for shard in shards
    ]
    assert len(shards) == 2


@pytest.mark.parametrize("damage", ['{"format_version": 1}', "{", ""])
def test_a_damaged_dataset_can_be_replaced(corpus, tmp_path, damage):
    (tmp_path / "manifest.json").write_text(damage)
    process = run_program(
        "data_pipeline.preprocess", *command(corpus / "one.jsonl", tmp_path)
    )
    assert_refused(process, "made with other format version")
    run(corpus / "one.jsonl", tmp_path, overwrite=True)
    assert manifest.load(str(tmp_path)).split("train").num_records


def test_only_files_of_a_dataset_are_replaced(corpus, tmp_path):
    """Other people's files in the folder stay, whatever they are called."""
    others = ["train-00000-of-00009.tfrecord", "work/notes.txt", "x.tfrecord"]
    for name in others:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    run(corpus / "two.jsonl", tmp_path)
    run(corpus / "three.jsonl", tmp_path, num_shards=2)
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    shards = {path.name for path in tmp_path.glob("*-of-0000[23].tfrecord")}
    assert shards == {
        f"{split}-0000{index}-of-00002.tfrecord"
        for split in ("train", "validation")
        for index in (0, 1)
    }


def test_a_changed_tokenizer_is_another_job(corpus, tmp_path):
    """The same folder name with other contents: nothing stale is taken for done."""
    folder = tmp_path / "tokenizer"
    plans, first = [], {}
    for size in (265, 275):
        run(corpus / "one.jsonl", tmp_path / str(size), vocab_size=size)
        folder.mkdir(exist_ok=True)
        for path in (tmp_path / str(size) / "tokenizer").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = DataConfig(input=str(corpus), tokenizer=str(folder))
        first = first or jobs.plan(Config(data=config)).description()
        plans.append(jobs.plan(Config(data=config)))
    # The second plan was made with the first one's path, but not its contents.
    assert plans[1].differences(first) == ["tokenizer"]


def test_a_stopped_run_is_not_thrown_away(corpus, tmp_path, monkeypatch):
    """Another config in the same folder is refused, by the name of the field."""
    with monkeypatch.context() as patch:
        patch.setattr(shards, "plan", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus, tmp_path)
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="with other num_shards, seed"):
        run(corpus, tmp_path, num_shards=2, seed=1)
    assert hashes(tmp_path) == before
    written = run(corpus, tmp_path, seed=1, overwrite=True)
    assert written.config["seed"] == 1


def test_overwriting_keeps_the_old_dataset_until_the_new_one_is_whole(
    corpus, tmp_path, monkeypatch
):
    run(corpus / "one.jsonl", tmp_path)
    old = hashes(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(preprocess, "_write_shards", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus / "two.jsonl", tmp_path)
    now = hashes(tmp_path)
    assert {name: now[name] for name in old} == old


def stopped_publication(num_changes: int):
    """Returns `publish`, killed after so many changes of files."""
    left = iter(range(num_changes))

    def counted(change):
        def changed(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            change(*arguments)

        return changed

    publish = dataset_folder.publish

    def stopped(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            for name in ("move", "remove", "write"):
                patch.setattr(files, name, counted(getattr(files, name)))
            publish(*arguments)

    return stopped


@pytest.mark.parametrize("then", ["one.jsonl", "four.jsonl"])
def test_a_publication_that_was_stopped_continues(corpus, tmp_path, monkeypatch, then):
    """Killed between any two changes: what a run without a kill would have left.

    Also where another job comes after it.
    """
    settings = {"validation_fraction": 0.0, "sequence_length": 16}
    sizes = {"one.jsonl": 2, "four.jsonl": 1}
    run(corpus / then, tmp_path / "whole", num_shards=sizes[then], **settings)
    expected = hashes(tmp_path / "whole")
    start = tmp_path / "start"
    run(corpus / "four.jsonl", start, num_shards=3, **settings)
    with monkeypatch.context() as patch:
        patch.setattr(dataset_folder, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus / "one.jsonl", start, num_shards=2, **settings)
    for changes in itertools.count():
        folder = tmp_path / str(changes)
        shutil.copytree(start, folder)
        with monkeypatch.context() as patch:
            patch.setattr(dataset_folder, "publish", stopped_publication(changes))
            try:
                run(corpus / "one.jsonl", folder, num_shards=2, **settings)
                break
            except KeyboardInterrupt:
                pass
        run(corpus / then, folder, num_shards=sizes[then], overwrite=True, **settings)
        assert hashes(folder) == expected, changes
    assert changes > 10


@pytest.mark.parametrize("name", ["chunk-*.tokens", "*.tfrecord", "tokenizer/*.json"])
@pytest.mark.parametrize("keep_size", [True, False])
def test_finished_work_that_was_damaged_is_done_again(
    corpus, tmp_path, monkeypatch, name, keep_size
):
    """Its marker is there; its checksum is another."""
    run(corpus / "two.jsonl", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(dataset_folder, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus / "two.jsonl", tmp_path / "run")
    damaged = [
        p for p in (tmp_path / "run" / ".unfinished").glob(name) if p.stat().st_size
    ]
    assert damaged
    for path in damaged:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"?" if keep_size else data[: len(data) // 2])
    run(corpus / "two.jsonl", tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


@pytest.mark.parametrize("finished", [False, True])
def test_work_that_was_being_removed_is_not_taken_for_whole(
    corpus, tmp_path, monkeypatch, finished
):
    """Killed while the work folder was removed: nothing of it is used again."""
    run(corpus / "two.jsonl", tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(dataset_folder, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(corpus / "two.jsonl", tmp_path / "run")
    work = tmp_path / "run" / ".unfinished"
    if finished:
        kept = tmp_path / "kept"
        work.rename(kept)
        run(corpus / "two.jsonl", tmp_path / "run")
        kept.rename(work)
        for path in work.glob("*.tfrecord"):
            path.unlink()  # they had been moved
    else:
        (work / "job.json").unlink()
        for path in work.glob("*.tokens"):
            path.write_bytes(b"")
    run(corpus / "two.jsonl", tmp_path / "run")
    assert hashes(tmp_path / "run") == hashes(tmp_path / "whole")


def test_training_text_is_not_taken_for_validation(corpus):
    config = DataConfig(input=str(corpus), validation_input=str(corpus / "one.jsonl"))
    with pytest.raises(DataError, match="must not be part of `--input`"):
        jobs.plan(Config(data=config))


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
            "The validation split is empty",
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
    found = run_program(
        "data_pipeline.preprocess",
        *command(tmp_path / "a.txt", tmp_path / "out", *arguments),
    )
    assert_refused(found, message)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_malformed_line_in_a_worker_is_one_message(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    found = run_program(
        "data_pipeline.preprocess",
        *command(
            tmp_path / "a.jsonl",
            tmp_path / "out",
            f"--config.data.tokenizer={vocabulary}",
        ),
    )
    assert_refused(found, "a.jsonl:2: each line must be a JSON object")


def test_pieces_of_a_job_do_not_depend_on_paths(corpus, tmp_path):
    """The manifest names contents, so a copy elsewhere is the same dataset."""
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    plans = [
        jobs.plan(Config(data=DataConfig(input=str(folder))))
        for folder in (corpus, tmp_path)
    ]
    assert plans[0].description() == plans[1].description()
    assert isinstance(plans[0].train_files[0], sources.InputFile)


def test_a_tokenizer_that_loses_text_or_has_no_end_is_refused(corpus, tmp_path):
    run(corpus / "two.jsonl", tmp_path / "good")
    stored = (tmp_path / "good" / "tokenizer" / "tokenizer.json").read_text()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    settings = {"tokenizer": str(folder), "validation_fraction": 0.0}

    def write(change):
        values = json.loads(stored)
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values))

    def without_a_byte(values):
        del values["model"]["vocab"]["z"]
        values["model"]["merges"] = []

    write(without_a_byte)
    with pytest.raises(DataError, match="1 bytes are missing"):
        run(corpus, tmp_path / "out", **settings)

    def without_an_end(values):
        values["added_tokens"] = []
        ids = values["model"]["vocab"]
        ids["renamed"] = ids.pop(END_OF_TEXT)

    write(without_an_end)
    with pytest.raises(DataError, match="must have an end-of-text token"):
        run(corpus, tmp_path / "out", **settings)
    written = run(corpus, tmp_path / "out", **settings, end_token="<|end|>")
    assert written.added_tokens == ("<|end|>",)

    write(lambda values: values["model"]["vocab"].update(gap=70_000))
    written = run(corpus, tmp_path / "gap", **settings)
    assert (written.vocabulary_size, written.token_dtype) == (70_001, "uint32")


def test_what_a_mistake_left_is_in_nobodys_way(corpus, tmp_path):
    """The message says to change the config; then the command must run."""
    too_long = {"sequence_length": 4096, "validation_fraction": 0.0}
    with pytest.raises(DataError, match="at least one sequence"):
        run(corpus / "four.jsonl", tmp_path, **too_long)
    written = run(
        corpus / "four.jsonl", tmp_path, validation_fraction=0.0, num_shards=1
    )
    assert written.sequence_length == LENGTH


def test_an_output_that_cannot_be_written_is_one_message(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    found = run_program("data_pipeline.preprocess", *command(corpus, tmp_path / "file"))
    assert_refused(found, "file cannot be used: File exists")
