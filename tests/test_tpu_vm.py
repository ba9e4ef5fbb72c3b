"""scripts/tpu_vm.py, with a stand-in for `gcloud` whose VM is a folder here."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# The file `state` holds the state of the request; each line of `fates`, how the next
# training ends: "gone", or its exit code. A command of `ssh` runs in the VM's folder.
GCLOUD = """#!/bin/sh
printf '%s\\n' "$*" >>"$CLOUD/calls"
state=$(cat "$CLOUD/state" 2>/dev/null)
case "$*" in
  *"queued-resources create"*)
    rm -rf "$CLOUD/vm"; mkdir "$CLOUD/vm"; echo WAITING_FOR_RESOURCES >"$CLOUD/state" ;;
  *"queued-resources describe"*)
    [ "$state" ] || { echo "NOT_FOUND: no such request" >&2; exit 1; }
    echo "$state"
    case "$state" in
      WAITING*) echo PROVISIONING >"$CLOUD/state" ;;
      PROVISIONING) echo ACTIVE >"$CLOUD/state" ;;
    esac ;;
  *"queued-resources delete"*) rm "$CLOUD/state" ;;
  *"tpu-vm describe"*) echo "$HOSTS" ;;
  *"tpu-vm scp"*) cp "$5" "$CLOUD/vm" ;;
  *"tpu-vm ssh"*)
    [ "$state" = ACTIVE ] || exit 255
    cd "$CLOUD/vm" || exit 255
    for argument; do
      command=${argument#--command=}
      [ "$command" = "$argument" ] || { sh -c "$command"; code=$?; }
    done
    [ ! -e gone ] || { echo SUSPENDED >"$CLOUD/state"; exit 255; }
    exit "$code" ;;
  *) exit 9 ;;
esac
"""
GIT = """#!/bin/sh
mkdir "$CLOUD/gpt2-tpu"
tar czf "${3#--output=}" -C "$CLOUD" gpt2-tpu
rmdir "$CLOUD/gpt2-tpu"
"""
# What a checkout holds after `make install-tpu`.
PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >>"$CLOUD/trained"
case "$*" in *tpu_server*) exit ;; esac
fate=$(sed -n 1p "$CLOUD/fates"); sed -i 1d "$CLOUD/fates"
[ "$fate" != gone ] || { touch ../gone; exit 1; }
exit "$fate"
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder with `gcloud`, `git` and `make`, and the state of one VM."""
    tools = tmp_path / "bin"
    tools.mkdir()
    python = tmp_path / "python"
    stands_in = "mkdir -p .venv/bin && cp ../../python .venv/bin/python"
    for path, text in {
        tools / "gcloud": GCLOUD,
        tools / "git": GIT,
        tools / "make": f"#!/bin/sh\n{stands_in}\n",
        python: PYTHON,
    }.items():
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("CLOUD", str(tmp_path))
    monkeypatch.setenv("HOSTS", "10.0.0.1")
    return tmp_path


def run(*flags: str) -> subprocess.CompletedProcess:
    command = [
        *(
            sys.executable,
            "scripts/tpu_vm.py",
            "--name=my-run",
            "--zone=europe-west4-b",
        ),
        *("--type=v5e-8", "--spot"),
        *("--poll_seconds=0.01", *flags, "--"),
        *("--config=configs/gpt2_small.py", "--data_dir=gs://b/my data"),
        "--workdir=gs://b/run",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_a_run_outlives_three_preemptions(cloud):
    (cloud / "fates").write_text("gone\ngone\ngone\n0\n")
    result = run()
    assert result.returncode == 0, result.stderr
    calls = (cloud / "calls").read_text()
    assert calls.count("queued-resources create") == 4
    assert calls.count("--accelerator-type=v5litepod-8") == 4
    assert calls.count("queued-resources delete") == 4  # and none is left
    assert not (cloud / "state").exists()
    trained = (cloud / "trained").read_text().splitlines()
    flags = "--config=configs/gpt2_small.py --data_dir=gs://b/my data"
    assert (
        trained == [f"-m trainer.forever {flags} --workdir=gs://b/run --tpu=local"] * 4
    )
    assert result.stderr.count("SUSPENDED") == 3


@pytest.mark.parametrize("code", [1, 2])
def test_a_fault_of_the_training_ends_it(cloud, code):
    (cloud / "fates").write_text(f"{code}\n0\n")
    assert run("--keep").returncode == code
    assert (cloud / "state").read_text() == "ACTIVE\n"
    assert len((cloud / "trained").read_text().splitlines()) == 1


def test_an_interrupted_training_is_started_again(cloud):
    (cloud / "fates").write_text("75\n0\n")
    assert run().returncode == 0
    assert (cloud / "calls").read_text().count("queued-resources create") == 1


def test_a_vm_that_never_works_is_given_up(cloud):
    (cloud / "bin" / "make").write_text("#!/bin/sh\nexit 1\n")
    result = run()
    assert result.returncode == 1
    assert "failed 5 times" in result.stderr
    assert not (cloud / "state").exists()


def test_each_host_of_a_pod_serves_its_chips(cloud, monkeypatch):
    monkeypatch.setenv("HOSTS", "10.0.0.1;10.0.0.2")
    (cloud / "fates").write_text("0\n")
    result = run()
    assert result.returncode == 0, result.stderr
    server, training = sorted((cloud / "trained").read_text().splitlines())[::-1]
    assert server == "scripts/tpu_server.py"
    assert training.endswith(" --tpu=grpc://10.0.0.1:8470,grpc://10.0.0.2:8470")


def test_a_dry_run_prints_the_commands(cloud):
    result = run("--dry_run")
    assert result.returncode == 0, result.stderr
    assert not (cloud / "calls").exists()
    for part in (
        "queued-resources create",
        "trainer.forever",
        "queued-resources delete",
    ):
        assert part in result.stdout


def test_a_folder_that_goes_with_the_vm_is_refused():
    command = [
        sys.executable,
        "scripts/tpu_vm.py",
        "--name=a",
        "--zone=b",
        "--type=v3-8",
    ]
    result = subprocess.run(
        [*command, "--", "--workdir=runs/a"], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert "must name a bucket" in result.stderr
