"""Runs that are stopped, repeated or replaced: what happens to the output folder."""

import contextlib
import itertools
import json
import shutil

import pytest

from configs.errors import DataError, UserError
from configs.schema import Config, DataConfig
from data_pipeline.job import plan_job
from data_pipeline.records import shards
from tests import programs
from tests.conftest import assert_refused
from tests.data_pipeline.runs import (
    LENGTH,
    SMALL_CHUNKS,
    command,
    hashes,
    in_process,
    run,
)
from tfrecords import manifest
from tfrecords.storage import files


class StoppedError(Exception):
    """Stops a run here, as if it was killed."""


def stopping_before_shards(function, items):
    """A runner that is stopped between the two passes."""
    if function is shards.write:
        raise StoppedError
    return in_process(function, items)


def stopping_after_shards(function, items):
    """A runner that is stopped when all shards are written, and none is published."""
    yield from in_process(function, items)
    if function is shards.write:
        raise StoppedError


def run_stopped(*arguments, runner=stopping_after_shards, **fields) -> None:
    with pytest.raises(StoppedError):
        run(*arguments, runner=runner, **fields)


def test_finished_chunks_are_not_done_again(corpus, tmp_path):
    run(corpus, tmp_path / "whole", **SMALL_CHUNKS)
    run_stopped(
        corpus, tmp_path / "stopped", runner=stopping_before_shards, **SMALL_CHUNKS
    )
    work = tmp_path / "stopped" / ".unfinished"
    times = {path: path.stat().st_mtime_ns for path in work.glob("*.tokens")}
    assert len(times) > 4

    kept = {}

    def keeping_times(function, items):
        if function is shards.write:
            kept.update({path: path.stat().st_mtime_ns for path in times})
        return in_process(function, items)

    run(corpus, tmp_path / "stopped", runner=keeping_times, **SMALL_CHUNKS)
    assert kept == times
    assert hashes(tmp_path / "stopped") == hashes(tmp_path / "whole")


def test_a_finished_dataset_is_kept_and_never_replaced_unasked(corpus, tmp_path):
    one, two = corpus / "one.jsonl", corpus / "two.jsonl"
    for _ in range(2):
        result = programs.run("data_pipeline.preprocess", *command(two, tmp_path))
        assert result.returncode == 0, result.stderr
    assert "holds this dataset already" in result.stderr
    before = hashes(tmp_path)
    result = programs.run("data_pipeline.preprocess", *command(one, tmp_path))
    assert result.returncode == 2
    assert "made with other input" in result.stderr
    assert hashes(tmp_path) == before
    result = programs.run(
        "data_pipeline.preprocess",
        *command(two, tmp_path, "--overwrite", "--config.data.num_shards=2", "--json"),
    )
    assert result.returncode == 0, result.stderr
    shards = json.loads(result.stdout)["splits"]["train"]["shards"]
    assert sorted(path.name for path in tmp_path.glob("train-*")) == [
        shard["name"] for shard in shards
    ]
    assert len(shards) == 2


@pytest.mark.parametrize("damage", ['{"format_version": 1}', "{", ""])
def test_a_damaged_dataset_can_be_replaced(corpus, tmp_path, damage):
    (tmp_path / "manifest.json").write_text(damage)
    one = corpus / "one.jsonl"
    result = programs.run("data_pipeline.preprocess", *command(one, tmp_path))
    assert_refused(result, "made with other format version")
    run(one, tmp_path, overwrite=True)
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
    """A folder of the same name has other contents: no old work is used."""
    folder = tmp_path / "tokenizer"
    plans, first = [], {}
    for size in (265, 275):
        run(corpus / "one.jsonl", tmp_path / str(size), vocab_size=size)
        folder.mkdir(exist_ok=True)
        for path in (tmp_path / str(size) / "tokenizer").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        config = DataConfig(input=str(corpus), tokenizer=str(folder))
        first = first or plan_job(Config(data=config)).description()
        plans.append(plan_job(Config(data=config)))
    # The second plan was made with the first one's path, but not its contents.
    assert plans[1].differences(first) == ["tokenizer"]


def test_the_work_of_a_stopped_run_is_not_thrown_away(corpus, tmp_path):
    """Another config in the same folder is refused, by the name of the field."""
    run_stopped(corpus, tmp_path, runner=stopping_before_shards)
    before = hashes(tmp_path)
    with pytest.raises(UserError, match="with other num_shards, seed"):
        run(corpus, tmp_path, num_shards=2, seed=1)
    assert hashes(tmp_path) == before
    written = run(corpus, tmp_path, seed=1, overwrite=True)
    assert written.config["seed"] == 1


def test_overwriting_keeps_the_old_dataset_until_the_new_one_is_whole(corpus, tmp_path):
    run(corpus / "one.jsonl", tmp_path)
    old = hashes(tmp_path)
    run_stopped(corpus / "two.jsonl", tmp_path)
    now = hashes(tmp_path)
    assert {name: now[name] for name in old} == old


@contextlib.contextmanager
def stopped_publication(num_changes: int):
    """Yields a runner after which a run is stopped at so many changes of files."""
    remaining = iter(range(num_changes))

    def counted(change):
        def changed(*arguments):
            if next(remaining, None) is None:
                raise StoppedError
            change(*arguments)

        return changed

    with pytest.MonkeyPatch.context() as patch:

        def runner(function, items):
            yield from in_process(function, items)
            if function is shards.write:
                for name in ("move", "remove", "write"):
                    patch.setattr(files, name, counted(getattr(files, name)))

        yield runner


@pytest.mark.parametrize("then", ["one.jsonl", "four.jsonl"])
def test_a_publication_that_was_stopped_continues(corpus, tmp_path, then):
    """Stopped between any two changes: the result is that of a run without a stop.

    Also if the next run is of another job.
    """
    settings = {"validation_fraction": 0.0, "sequence_length": 16}
    sizes = {"one.jsonl": 2, "four.jsonl": 1}
    run(corpus / then, tmp_path / "whole", num_shards=sizes[then], **settings)
    expected = hashes(tmp_path / "whole")
    start = tmp_path / "start"
    run(corpus / "four.jsonl", start, num_shards=3, **settings)
    run_stopped(corpus / "one.jsonl", start, num_shards=2, **settings)
    for changes in itertools.count():
        folder = tmp_path / str(changes)
        shutil.copytree(start, folder)
        with stopped_publication(changes) as runner, contextlib.suppress(StoppedError):
            one = {"num_shards": 2, "runner": runner, **settings}
            run(corpus / "one.jsonl", folder, **one)
            break
        run(corpus / then, folder, num_shards=sizes[then], overwrite=True, **settings)
        assert hashes(folder) == expected, changes
    assert changes > 10


@pytest.mark.parametrize("name", ["chunk-*.tokens", "*.tfrecord", "tokenizer/*.json"])
@pytest.mark.parametrize("keep_size", [True, False])
def test_finished_work_that_was_damaged_is_done_again(
    corpus, tmp_path, name, keep_size
):
    """Its marker exists, but the checksum differs."""
    run(corpus / "two.jsonl", tmp_path / "whole")
    run_stopped(corpus / "two.jsonl", tmp_path / "run")
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
def test_work_that_was_being_removed_is_not_used(corpus, tmp_path, finished):
    """The run was stopped while it removed the work folder."""
    run(corpus / "two.jsonl", tmp_path / "whole")
    run_stopped(corpus / "two.jsonl", tmp_path / "run")
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


def test_after_a_mistake_the_corrected_command_runs(corpus, tmp_path):
    """The unfinished work of the wrong config does not prevent it."""
    too_long = {"sequence_length": 4096, "validation_fraction": 0.0}
    with pytest.raises(DataError, match="at least one sequence"):
        run(corpus / "four.jsonl", tmp_path, **too_long)
    written = run(
        corpus / "four.jsonl", tmp_path, validation_fraction=0.0, num_shards=1
    )
    assert written.sequence_length == LENGTH


def test_an_output_that_cannot_be_written_is_one_message(corpus, tmp_path):
    (tmp_path / "file").write_text("x")
    result = programs.run(
        "data_pipeline.preprocess", *command(corpus, tmp_path / "file")
    )
    assert_refused(result, "file cannot be used: File exists")
