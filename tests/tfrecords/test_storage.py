"""Tests files on a disk and in a bucket of a real server, and their one writer."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest

from configs.errors import RunError, TryAgainError, UserError
from configs.schema import DataConfig
from data_pipeline.sources import finding, pieces
from tests import object_store
from tests.conftest import ROOT
from tfrecords.storage import files, gcs, lease


@pytest.fixture(params=["local", "bucket"])
def root(request, tmp_path) -> str:
    """Returns a folder on this machine, and one in a bucket."""
    if request.param == "local":
        return str(tmp_path)
    return request.getfixturevalue("bucket") + f"/{tmp_path.name}"


def test_a_file_is_read_as_it_was_written(root):
    path = f"{root}/sub/file.bin"
    assert not files.exists(path)
    files.write(path, b"one\ntwo")
    assert files.exists(path)
    assert files.read(path) == b"one\ntwo"
    size, version = files.stat(path)
    assert size == 7
    with files.open_read(path) as stream:
        stream.seek(2)
        assert stream.readline() == b"e\n"
    checksum = files.checksum(path)
    assert checksum.startswith("7-")
    files.write(path, b"one\ntwx")
    assert files.checksum(path) != checksum
    assert files.stat(path)[1] != version
    files.append(path, b"!")
    files.append(f"{root}/sub/new", b"!")
    assert files.read(path) == b"one\ntwx!"
    assert files.read(f"{root}/sub/new") == b"!"


def test_a_local_copy_belongs_to_a_version_and_can_be_removed(
    root, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for version in (b"1", b"2"):
        files.write(f"{root}/file", version)
        for _ in range(2):
            copy = pathlib.Path(files.local_copy(f"{root}/file", version.decode()))
            assert copy.read_bytes() == version
    files.remove_copies(root)
    assert copy.exists() != files.is_remote(root)


def test_a_checksum_is_the_same_on_disk_and_in_a_bucket(tmp_path, bucket):
    for path in (f"{tmp_path}/x", f"{bucket}/x"):
        files.write(path, bytes(range(256)))
    assert files.checksum(f"{tmp_path}/x") == files.checksum(f"{bucket}/x")


def test_a_failed_write_leaves_no_file(root):
    def fail():
        with files.writing(f"{root}/file") as name:
            with open(name, "wb") as stream:
                stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert files.expand(root) == []


def test_paths_folders_and_globs_select_files(root):
    names = ("a.txt", "b.jsonl", "sub/c.txt", "sub/deep/d.txt", "sub/.hidden")
    for name in (*names, ".cache/e.txt", "sub.txt/[x].txt"):
        files.write(f"{root}/{name}", b"x")

    def expand(pattern):
        return [p.removeprefix(f"{root}/") for p in files.expand(f"{root}{pattern}")]

    assert sorted(expand("")) == sorted([*names[:-1], "sub.txt/[x].txt"])
    assert expand("/a.txt") == ["a.txt"]
    assert expand("/*.txt") == ["a.txt", "sub.txt/[x].txt"]
    assert expand("/*/?.txt") == ["sub/c.txt"]
    assert expand("/[a-c].*") == ["a.txt", "b.jsonl"]
    assert expand("/[!b-z].*") == ["a.txt"]
    assert expand("/[ac]*") == ["a.txt"]
    assert expand("/sub/**/*.txt") == ["sub/c.txt", "sub/deep/d.txt"]
    assert expand("/s**/c.txt") == ["sub/c.txt"]
    assert expand("/sub/**") == ["sub/c.txt", "sub/deep/d.txt"]
    assert expand("/sub") == expand("/sub/") == ["sub/c.txt", "sub/deep/d.txt"]
    assert expand("/*/.hidden") == ["sub/.hidden"]
    assert expand("/.cache/*") == expand("/.cache") == [".cache/e.txt"]
    assert expand("/sub.txt/[x].txt") == ["sub.txt/[x].txt"]
    assert expand("/sub.txt/[[]x].*") == ["sub.txt/[x].txt"]
    assert expand("/sub.txt/[!x]*") == ["sub.txt/[x].txt"]
    assert expand("/s*") == ["sub.txt/[x].txt", "sub/c.txt", "sub/deep/d.txt"]
    assert expand("/*/") == expand("/s*")
    assert expand("/**") == expand("/**/*") == expand("/*") == expand("")
    assert expand("/nothing") == expand("/nothing/") == []


def test_hidden_files_that_are_left_out_are_reported(root):
    for name in ("a.txt", ".b.txt", "sub/.c/d.txt", "sub/e.txt", ".other"):
        files.write(f"{root}/{name}", b"x")
    for pattern, expected in (
        ("", [".b.txt", ".other", "sub/.c"]),
        ("/*.txt", [".b.txt"]),
        ("/sub/*", ["sub/.c"]),
        ("/sub/.c/d.txt", []),
    ):
        hidden = set()
        files.expand(f"{root}{pattern}", hidden)
        names = {path.removeprefix(f"{root}/") for path in hidden}
        assert {name.removesuffix("/d.txt") for name in names} == set(expected)


def test_links_are_followed_and_a_circle_is_read_once(tmp_path):
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "else").mkdir()
    for name in ("tree/a", "tree/sub/b", "else/c"):
        (tmp_path / name).write_text(name)
    (tmp_path / "tree/sub/circle").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/there").symlink_to(tmp_path / "else")
    (tmp_path / "tree/lost").symlink_to(tmp_path / "nothing")
    expected = ["tree/a", "tree/lost", "tree/sub/b", "tree/there/c"]
    for pattern in ("tree", "tree/*", "tree/**", "*"):
        paths = files.expand(str(tmp_path / pattern))
        names = [path.removeprefix(f"{tmp_path}/") for path in paths]
        assert set(names) - {"else/c"} == set(expected)


def test_files_are_moved_and_removed(root):
    files.write(f"{root}/a", b"1")
    files.move(f"{root}/a", f"{root}/b")
    assert not files.exists(f"{root}/a")
    assert files.read(f"{root}/b") == b"1"
    for name in (".work/x", ".work/.y", ".work/deep/z", ".worker"):
        files.write(f"{root}/{name}", b"2")
    files.remove(f"{root}/.work")
    files.remove(f"{root}/nothing")
    for name in ("x", ".y", "deep/z"):
        assert not files.exists(f"{root}/.work/{name}")
    assert files.read(f"{root}/.worker") == b"2"
    assert files.expand(root) == [f"{root}/b"]


def test_a_second_writer_is_refused(root):
    with lease.only_writer(root):
        with pytest.raises(UserError, match="must have one writer"):
            lease.only_writer(root).__enter__()
        with lease.only_writer(f"{root}/other"):
            pass
    with lease.only_writer(root):
        pass


def test_a_killed_writer_does_not_keep_its_folder(root):
    program = (
        "import os, signal, sys; from tfrecords.storage import lease\n"
        "with lease.only_writer(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    arguments = [sys.executable, "-c", program, root]
    assert subprocess.run(arguments, cwd=ROOT).returncode == -9
    with lease.only_writer(root):
        pass
    if files.is_remote(root):  # another machine must wait until the lease expires
        assert subprocess.run(arguments, cwd=ROOT).returncode == -9
        start = time.monotonic()
        with lease.only_writer(root, heartbeat_seconds=0.8, machine="another machine"):
            assert time.monotonic() - start > 1


def test_a_live_writer_on_another_machine_is_detected(bucket):
    folder = f"{bucket}/shared"
    message = r"writes there \(process \d+ on"
    with lease.only_writer(folder, heartbeat_seconds=1):
        other = lease.only_writer(folder, heartbeat_seconds=2, machine="another")
        with pytest.raises(UserError, match=message):
            other.__enter__()


def test_a_writer_whose_lease_was_taken_ends(bucket):
    program = (
        "import sys, time; from tfrecords.storage import lease\n"
        "with lease.only_writer(sys.argv[1], heartbeat_seconds=0.2):\n"
        "    print(flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, f"{bucket}/taken"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline()
    gcs.blob(f"{bucket}/taken/.writer").upload_from_string("process 1 on other, 0")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "is held by another writer: this one ends" in log


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_bucket_that_does_not_answer_gives_one_message(
    store, bucket, monkeypatch, status
):
    from google.cloud.storage import retry

    # The library has no setting for the two minutes of its default.
    monkeypatch.setattr(retry.DEFAULT_RETRY, "_timeout", 1)
    store.faults = [object_store.Fault(".", status=status)]
    with pytest.raises(TryAgainError, match="its bucket does not answer"):
        files.exists(f"{bucket}/x")


def test_a_missing_bucket_gives_one_message(bucket):
    with pytest.raises(UserError, match="gs://nowhere/x must exist"):
        files.read("gs://nowhere/x")
    with pytest.raises(UserError, match=r"answered 404"):
        files.stat(f"{bucket}/absent")


def test_a_refusal_while_reading_gives_one_message(store, bucket):
    path = f"{bucket}/refused.txt"
    files.write(path, b"text")
    (file,) = finding.find_files(path, DataConfig(), flag="input")
    store.faults = [object_store.Fault("GET .*alt=media", status=403)]
    reading = pieces.read(pieces.Piece(file, 0, 4), DataConfig())
    with pytest.raises(UserError, match=r"refused\.txt must exist"):
        list(reading)


def run_without_emulator(program, home, credentials=""):
    environment = {
        **{k: v for k, v in os.environ.items() if k != "STORAGE_EMULATOR_HOST"},
        "HOME": str(home),
        "NO_GCE_CHECK": "true",
        "GOOGLE_APPLICATION_CREDENTIALS": credentials,
    }
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_missing_credentials_give_one_message(tmp_path):
    program = "from tfrecords.storage import files; files.read('gs://bucket/x')"
    result = run_without_emulator(program, tmp_path)
    assert "gs://bucket/x needs credentials" in result.stderr


def test_credentials_need_not_name_a_project(tmp_path):
    """As the credentials of `gcloud auth application-default login`."""
    names = ("client_id", "client_secret", "refresh_token")
    login = {"type": "authorized_user", **dict.fromkeys(names, "x")}
    (tmp_path / "login.json").write_text(json.dumps(login))
    program = "from tfrecords.storage import gcs; gcs.client()"
    result = run_without_emulator(program, tmp_path, str(tmp_path / "login.json"))
    assert result.returncode == 0, result.stderr


def test_a_write_whose_answer_was_lost_is_not_another_writers(store, bucket):
    fault = object_store.Fault("POST .*upload", times=1)
    store.faults = [fault]
    files.write(f"{bucket}/once", b"data")
    assert store.num_faults == 1
    assert sum("ifGenerationMatch" in request for request in store.requests) == 2
    assert files.read(f"{bucket}/once") == b"data"


def test_an_interrupted_answer_is_not_taken_for_the_end_of_a_file(
    store, bucket, tmp_path
):
    path, copy = f"{bucket}/file", str(tmp_path / "copy")
    files.write(path, bytes(100_000))
    for number, read in enumerate(
        (
            lambda: files.read(path),
            lambda: files.open_read(path).read(),
            lambda: files.download(path, copy) or files.read(copy),
            lambda: files.append(path, b"") or files.read(path),
        )
    ):
        store.faults = [object_store.Fault("GET .*alt=media", times=2)]
        store.num_faults = 0
        assert read() == bytes(100_000), number
        assert store.num_faults == 2, store.requests[-4:]


def test_a_concurrent_write_of_another_program_is_not_overwritten(store, bucket):
    url = "/upload/storage/v1/b/corpus/o?uploadType=media&name=shared"
    write = functools.partial(store.ask, "POST", url, {}, b"theirs")
    store.faults = [object_store.Fault("POST .*upload", before=write, times=1)]
    with pytest.raises(UserError, match="written by another program"):
        files.write(f"{bucket}/shared", b"ours")
    assert files.read(f"{bucket}/shared") == b"theirs"


def test_a_disk_without_enough_free_space_is_reported(root):
    files.check_free_space(root, 1)
    with pytest.raises(RunError, match="MB free for what goes to"):
        files.check_free_space(root, 1 << 60)
