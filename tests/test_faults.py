"""Faults of preprocessing and reading, with real files and real processes.

What interrupts, fills, changes or damages, and what must come of it. Faults that need
no process of their own are tested beside their module; `TESTED` says where.
"""

import contextlib
import gzip
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tokenizers

from configs.errors import DataError
from tests import programs
from tests.conftest import ROOT, assert_refused, run_program, shared
from tests.data_pipeline.runs import hashes, load_encoder
from tfrecords import manifest, reader, schema, verify, writer
from tfrecords.windows import Windows

SIZES = ("--config.data.vocab_size=300", "--config.data.sequence_length=32")

# What runs the tests in the background ignores SIGINT, and so would what they start.
HEEDING_CTRL_C = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)

TESTED = {
    # -- reading
    "a flipped bit": "verify::a_flipped_bit_is_reported_with_its_record",
    "a shard cut between records": "faults::a_shard_that_is_not_whole_is_refused_before_training",
    "a shard empty, missing, renamed": "verify::a_shard_of_the_wrong_size_is_refused",
    "records doubled or exchanged": "verify::swapped_and_duplicated_records_are_reported",
    "another format version": "manifest::another_format_version_is_refused",
    "a record of another length, an unknown id": "faults::a_record_that_does_not_fit_is_named_while_it_is_read",
    "fewer shards than hosts": "reader::more_hosts_than_shards_is_refused",
    "a tokenizer, manifest, log or export that is damaged": "corruption::damage_is_noticed_or_has_no_effect",
    "a file that is missing": "corruption::a_file_that_is_missing_is_noticed",
    # -- checkpoints
    "SIGKILL at any moment, saves included": "preemption::thirty_kills_change_nothing",
    "killed between data and marker": "run_checkpoints::a_torn_save_is_removed_and_the_one_before_it_continues",
    "a marker that is garbage": "run_checkpoints::a_damaged_checkpoint_never_means_a_new_start",
    "the newest checkpoint is corrupt": "run_checkpoints::a_damaged_checkpoint_is_set_aside_and_the_one_before_it_continues",
    "a path out of the folder": "manifest::a_damaged_manifest_is_refused",
    "pickled weights": "pretrained_weights::what_is_wrong_is_one_message",
    "other variables": "run_checkpoints::other_variables_are_named",
    "stopped at any step": "run_checkpoints::an_interrupted_run_equals_an_undisturbed_one",
    "continued on other replicas": "run_checkpoints::continuing_on_other_replicas_reads_the_same_batches",
    "two trainers": "preemption::a_second_trainer_is_refused",
    "what retention removes": "run_checkpoints::which_checkpoints_stay",
    "a save that fails": "run_checkpoints::a_save_that_fails_stops_the_run",
    "a checkpoint of another version": "run_checkpoints::another_format_version_is_refused",
    # -- running
    "loss or gradient is no number": "run_checkpoints::a_diverged_run_stops_and_keeps_what_was_good",
    "weights are no numbers": "run_checkpoints::weights_that_are_no_numbers_are_neither_saved_nor_restored",
    "SIGTERM": "preemption::sigterm_saves_and_says_so",
    "SIGTERM, twice": "run_checkpoints::a_second_signal_does_not_tear_the_save",
    "stopped while it scores": "run_checkpoints::a_run_that_is_stopped_while_it_scores",
    "preemption, maintenance": "preemption::the_metadata_server_announces_the_end",
    "a metadata server that hangs": "preemption::a_metadata_server_that_hangs_changes_nothing",
    "another TPU type": "hardware::other_hardware_stops_with_both_names",
    "another machine dies": "cluster::when_a_machine_dies_the_others_stop_and_all_continue",
    "no room for checkpoints": "run_checkpoints::a_disk_without_room_stops_the_run_before_it_starts",
    "learning by heart": "run_checkpoints::a_model_that_learns_by_heart_says_so",
    # -- buckets
    "a bucket elsewhere": "buckets::a_bucket_elsewhere_is_told_of",
    "503 for minutes": "storage::a_bucket_that_does_not_answer_gives_one_message",
    "a lease that was taken": "storage::a_writer_whose_lease_was_taken_ends",
    "503 and connections that break": "buckets::the_whole_job_equals_the_one_on_a_disk",
    "401, 403, 404": "buckets::what_the_bucket_refuses_is_one_message",
    "412 to our own write": "storage::a_write_whose_answer_was_lost_is_not_another_writers",
    "412 to another's": "storage::a_concurrent_write_of_another_program_is_not_overwritten",
    "a shard is replaced": "run_checkpoints::a_shard_that_is_replaced_while_it_is_read_is_noticed",
    "what a killed writer leaves": "buckets::the_whole_job_equals_the_one_on_a_disk",
}


def test_each_fault_has_its_test():
    for place in TESTED.values():
        module, _, name = place.partition("::")
        (path,) = (ROOT / "tests").rglob(f"test_{module}.py")
        text = path.read_text()
        assert f"\ndef test_{name}(" in text, place


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Enough text that a run takes some seconds."""
    generator = np.random.default_rng(0)
    words = ["the", "tree", "Wörter", "語言", "🙂", "a", "(b)", "\tc", "don't", "1,000"]
    path = tmp_path_factory.mktemp("corpus") / "a.jsonl"
    with open(path, "w") as stream:
        for _ in range(40_000):
            text = " ".join(generator.choice(words, 20))
            stream.write(json.dumps({"text": text}) + "\n")
    return path


def command(corpus, output_dir, *arguments) -> list[str]:
    return [
        "--config=configs/quickstart.py",
        f"--input={corpus}",
        f"--output_dir={output_dir}",
        *SIZES,
        *arguments,
    ]


def preprocess(*arguments) -> subprocess.CompletedProcess:
    return run_program("data_pipeline.preprocess", *command(*arguments))


@contextlib.contextmanager
def running(corpus, output_dir, *arguments):
    """A run in the background, that has begun to write."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", HEEDING_CTRL_C),
            *("-m", "data_pipeline.preprocess"),
            *command(corpus, output_dir, *arguments),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        job = pathlib.Path(output_dir) / ".unfinished" / "job.json"
        while process.poll() is None and not job.exists():
            time.sleep(0.01)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(corpus, tmp_path):
    began = time.monotonic()
    assert preprocess(corpus, tmp_path / "whole").returncode == 0
    seconds = time.monotonic() - began
    generator = random.Random(0)
    kills = 0
    while kills < 20:
        with running(corpus, tmp_path / "killed") as process:
            try:
                assert process.wait(generator.uniform(0.0, seconds)) == 0
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                kills += 1
                continue
        assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")
        shutil.rmtree(tmp_path / "killed")
    assert preprocess(corpus, tmp_path / "killed").returncode == 0
    assert hashes(tmp_path / "killed") == hashes(tmp_path / "whole")


def workers_of(process) -> list[str]:
    """Waits until both workers are ready, each with a thread; returns all children."""
    listed = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        assert process.poll() is None
        children = listed.read_text().split()
        status = [pathlib.Path(f"/proc/{c}/status").read_text() for c in children]
        if sum("Threads:\t1\n" not in text for text in status) >= 2:
            return children
        time.sleep(0.01)


def test_workers_do_not_outlive_a_killed_program(corpus, tmp_path):
    with running(corpus, tmp_path, "--num_workers=2") as process:
        children = workers_of(process)
        process.kill()
        deadline = time.monotonic() + 30
        while alive := [c for c in children if _runs(c)]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.05)


def test_ctrl_c_is_one_message(corpus, tmp_path):
    """A terminal sends it to the workers, too."""
    with running(corpus, tmp_path, "--num_workers=2") as process:
        workers_of(process)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    # Python ends itself by the signal where it came amid `exec` of a text, as dataclasses
    # do. A shell shows 130 for both.
    assert process.returncode in (130, -signal.SIGINT), errors
    assert errors.endswith("error: Interrupted. The same command continues.\n")
    assert "Traceback" not in errors


def _runs(pid: str) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_full_disk_commits_nothing(corpus, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        found = preprocess(corpus, disk / "out")
        assert found.returncode == 1, found.stderr
        assert "error: The disk is full" in found.stderr
        assert "Traceback" not in found.stderr
        assert not (disk / "out" / "manifest.json").exists()
        assert not list((disk / "out").glob("*.tfrecord"))
        larger = ["mount", "-o", "remount,size=200m", str(disk)]
        subprocess.run(larger, check=True)
        found = preprocess(corpus, disk / "out")
        assert found.returncode == 0, found.stderr
        assert preprocess(corpus, tmp_path / "whole").returncode == 0
        assert hashes(disk / "out") == hashes(tmp_path / "whole")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_second_writer_is_refused_and_the_first_is_not_disturbed(corpus, tmp_path):
    with running(corpus, tmp_path) as first:
        os.killpg(first.pid, signal.SIGSTOP)  # so that it does not end before
        second = preprocess(corpus, tmp_path)
        os.killpg(first.pid, signal.SIGCONT)
        assert second.returncode == 2, second.stderr
        assert "must have one writer" in second.stderr
        assert "Traceback" not in second.stderr
        assert first.wait(120) == 0
    assert preprocess(corpus, tmp_path).returncode == 0


def test_input_that_changes_during_the_run_is_an_error(corpus, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(corpus.read_bytes())
    with running(path, tmp_path / "out") as process:
        with open(path, "a") as stream:
            stream.write('{"text": "more"}\n')
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "a.jsonl must not change" in errors
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_odd_bytes_are_counted_in_the_manifest(tmp_path):
    lines = [b"\xef\xbb\xbfone\r", b"two \0", b"three \xff", b"", *[b"more text"] * 99]
    (tmp_path / "a.txt").write_bytes(b"\n".join(lines))
    arguments = ["--config.data.document=line", "--config.data.validation_fraction=0"]
    found = preprocess(tmp_path / "a.txt", tmp_path / "out", *arguments)
    assert found.returncode == 2
    assert "must be UTF-8. Byte 20 is not" in found.stderr
    found = preprocess(
        *(tmp_path / "a.txt", tmp_path / "out", *arguments, "--json"),
        "--config.data.encoding_errors=skip",
    )
    assert found.returncode == 0, found.stderr
    split = json.loads(found.stdout)["splits"]["train"]
    assert split["repaired"] == {"byte_order_mark": 1}
    assert split["kept"] == {"crlf": 1, "nul": 1}
    assert split["skipped"] == {"invalid_utf8": 1, "empty": 1}
    assert split["documents"] == 101


@pytest.mark.slow
def test_megabytes_of_one_letter_complete_in_bounded_memory(tmp_path):
    texts = {
        "letter": "a" * 1_000_000,
        "spaces": "x" + " " * 1_000_000 + "x",
        "chinese": "".join(chr(0x4E00 + i * 7919 % 20_000) for i in range(350_000)),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    arguments = command(
        *(f"{tmp_path}/*.txt", tmp_path / "out", "--config.data.num_shards=1"),
        "--config.data.validation_fraction=0",
        f"--config.data.tokenizer={vocabulary}",
    )
    program = [sys.executable, "-m", "data_pipeline.preprocess", *arguments]
    # A process of pytest's size would count as the peak of what it starts.
    measure = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    found = subprocess.run(
        [sys.executable, "-c", measure, *program],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    # KiB, of the largest process of the run, its workers included.
    assert int(found.stdout.split()[-1]) < 500_000
    written = manifest.load(str(tmp_path / "out"))
    path = tmp_path / "out" / written.split("train").shards[0].name
    with open(path, "rb") as stream:
        records = [
            schema.deserialize(p, written.dtype) for p in schema.unframe(stream.read)
        ]
    from data_pipeline.records.packing import stored_order

    places = np.argsort(stored_order(len(records), seed=0, shuffle=True))
    stream_of = [records[p][0][: records[p][1] or 32] for p in places]
    tokens = np.concatenate(stream_of)
    ends = np.flatnonzero(tokens == written.end_of_text_id)
    parts = [part[part != written.end_of_text_id] for part in np.split(tokens, ends)]
    encoder = load_encoder(tmp_path / "out")
    decoded = [encoder.decode(part) for part in parts if len(part)]
    assert decoded == [texts[name] for name in sorted(texts)]


def test_a_vocabulary_of_more_than_65536_ids_is_stored_in_32_bits(tmp_path):
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: 70_000 + i for i, letter in enumerate(letters)}
    vocabulary |= {f"unused{i}": i for i in range(70_000)}
    vocabulary["<|endoftext|>"] = 70_256
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "a.txt").write_text("some text " * 99)
    found = preprocess(
        *(tmp_path / "a.txt", tmp_path / "out", f"--config.data.tokenizer={folder}"),
        "--config.data.validation_fraction=0",
    )
    assert found.returncode == 0, found.stderr
    written = manifest.load(str(tmp_path / "out"))
    assert (written.vocabulary_size, written.token_dtype) == (70_257, "uint32")
    batches = reader.training_batches(
        *(str(tmp_path / "out"), written),
        global_batch_size=2,
        batch_size=2,
        start_step=0,
        num_steps=1,
        seed=0,
    )
    tokens = next(iter(batches))["tokens"].numpy()
    assert tokens.min() >= 70_000
    inspected = run_program("tfrecords.inspect", f"--data_dir={tmp_path / 'out'}")
    assert inspected.returncode == 0, inspected.stderr


# -- reading


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small finished dataset, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("good")
    text = "\n\n".join(f"document {i} " + "of some words " * 9 for i in range(300))
    (folder / "a.txt").write_text(text)
    found = preprocess(
        *(folder / "a.txt", folder / "data", "--config.data.document=paragraph"),
        "--config.data.num_shards=2",
    )
    assert found.returncode == 0, found.stderr
    return folder / "data"


@pytest.fixture
def data(good, tmp_path):
    for path in good.rglob("*"):
        if path.is_file():
            target = tmp_path / "data" / path.relative_to(good)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return tmp_path / "data"


SHARD = "train-00001-of-00002.tfrecord"


def train(data) -> subprocess.CompletedProcess:
    return programs.run(
        "trainer.train",
        "--config=configs/quickstart.py",
        "--config.tracking.sample_interval=0",
        f"--data_dir={data}",
        f"--workdir={data}-run",
        "--config.data.sequence_length=32",
        "--config.model.n_embd=16",
        "--config.training.num_steps=40",
        "--config.training.global_batch_size=64",
        "--config.training.microbatch_size=64",
        "--config.training.evaluation_interval=0",
        "--config.training.checkpoint_interval=0",
    )


@pytest.mark.slow
def test_a_flipped_bit_stops_training_and_is_named(data):
    content = bytearray((data / SHARD).read_bytes())
    record_bytes = schema.frame_bytes(32, np.dtype("<u2"))
    content[3 * record_bytes + 50] ^= 4
    (data / SHARD).write_bytes(content)
    found = train(data)
    assert_refused(found, f"{SHARD}, record 3: its checksum is wrong")


def cut_between_records(data):
    content = (data / SHARD).read_bytes()
    (data / SHARD).write_bytes(content[: schema.frame_bytes(32, np.dtype("<u2")) * 2])


def cut_in_a_header(data):
    content = (data / SHARD).read_bytes()
    kept = schema.frame_bytes(32, np.dtype("<u2")) * 2 + 7
    (data / SHARD).write_bytes(content[:kept])


@pytest.mark.parametrize(
    "damage",
    [
        cut_between_records,
        cut_in_a_header,
        lambda data: (data / SHARD).write_bytes(b""),
        lambda data: (data / SHARD).unlink(),
        lambda data: (data / SHARD).rename(data / "train-00002-of-00002.tfrecord"),
        lambda data: (data / SHARD).write_bytes(
            gzip.compress((data / SHARD).read_bytes())
        ),
    ],
    ids=["cut", "cut header", "empty", "missing", "renamed", "compressed"],
)
def test_a_shard_that_is_not_whole_is_refused_before_training(data, damage):
    damage(data)
    found = manifest.load(str(data))
    with pytest.raises(DataError, match=SHARD):
        verify.verify_shards(str(data), found, "train")
    inspected = run_program("tfrecords.inspect", f"--data_dir={data}")
    assert inspected.returncode == 2
    assert SHARD in inspected.stderr
    if damage is cut_between_records:
        trained = train(data)
        assert trained.returncode == 2, trained.stderr
        assert SHARD in trained.stderr


@pytest.mark.parametrize("fault", ["id", "length"])
def test_a_record_that_does_not_fit_is_named_while_it_is_read(data, fault):
    """Its checksums are right; another program wrote it."""
    found = manifest.load(str(data))
    (shard,) = [s for s in found.split("train").shards if s.name == SHARD]
    rows = [np.zeros(32, "<u2") for _ in range(shard.num_records)]
    if fault == "id":
        rows[2][5] = found.vocabulary_size
    else:
        rows[2] = np.zeros(31, "<u2")
    writer.write_shard(str(data / SHARD), [schema.serialize(row) for row in rows])
    cut = {"split": "train", "context_length": 32, "stride": 32}
    windows = Windows(str(data), found, **cut)
    batches = windows.batches(global_batch_size=1, batch_size=1)
    message = "outside the vocabulary" if fault == "id" else "must have 32 tokens"
    with (
        pytest.raises(DataError, match=f"{SHARD}, record 2: .*{message}"),
        reader.translate_data_loss_errors(str(data), found),
    ):
        for _ in batches:
            pass
