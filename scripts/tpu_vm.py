#!/usr/bin/env python3
r"""Trains on a TPU VM that can be taken away at any time, until the run is finished.

    scripts/tpu_vm.py --name=NAME --zone=ZONE --type=v5e-8 --spot -- \
        --config=configs/gpt2_small.py --data_dir=gs://… --workdir=gs://…

Requests the TPU as a queued resource, waits for it, installs the last commit of this
checkout on each of its hosts, and follows `trainer.forever`, which gets the flags after
`--`. When the VM is gone, requests the next one; the run continues from its checkpoint.
Deletes the VM at the end. Runs anywhere with Python and `gcloud`, and may itself be
stopped: the same command continues.
"""

import argparse
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = "gpt2-tpu"
ARCHIVE = "gpt2-tpu.tar.gz"
# https://cloud.google.com/tpu/docs/runtimes
RUNTIME_VERSIONS = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
OLDER_RUNTIME_VERSION = "tpu-ubuntu2204-base"
GONE = ("FAILED", "SUSPENDING", "SUSPENDED")
TRY_AGAIN = 75  # the exit code of a training that was interrupted
ATTEMPTS = 5

INSTALL = """
set -e
tar xzf {archive}
cd {folder}
if ! {{ command -v make && python3 -c 'import ensurepip'; }} >/dev/null 2>&1; then
  sudo apt-get -qq update
  sudo apt-get -qq install make python3-venv >/dev/null
fi
make install-tpu
"""
# It goes on when the connection is lost.
START = """
cd {folder}
if ! {{ test -e {job}.pid && kill -0 "$(cat {job}.pid)" 2>/dev/null; }}; then
  rm -f {job}.exit
  setsid nohup sh -c {command} >{job}.log 2>&1 </dev/null &
  echo $! >{job}.pid
fi
"""
FOLLOW = 'cd {folder} && tail -n +1 --pid="$(cat {job}.pid)" -f {job}.log'
EXIT_CODE = "cat {folder}/{job}.exit"


class TpuVm:
    """A queued resource with one TPU VM of the same name.

    Args:
      options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        self._options = options
        self._where = [options.name, f"--zone={options.zone}"]

    def request(self) -> None:
        """Puts the request for the VM into the queue; raises where it is refused."""
        generation = self._options.type.split("-")[0]
        version = self._options.runtime_version or RUNTIME_VERSIONS.get(
            generation, OLDER_RUNTIME_VERSION
        )
        self._gcloud(
            *("queued-resources", "create", *self._where),
            f"--node-id={self._options.name}",
            f"--accelerator-type={self._options.type}",
            f"--runtime-version={version}",
            *(["--spot"] if self._options.spot else []),
        ).check_returncode()

    def state(self) -> str:
        """Returns the state of the request; empty: there is none."""
        if self._options.dry_run:
            self._show("queued-resources", "describe", *self._where)
            return "ACTIVE"
        result = self._gcloud(
            *("queued-resources", "describe", *self._where),
            "--format=value(state.state)",
            capture=True,
        )
        if result.returncode and "NOT_FOUND" not in result.stderr:
            sys.stderr.write(result.stderr)
            result.check_returncode()
        return result.stdout.strip()

    def delete(self) -> None:
        """Deletes the request and its VM."""
        self._gcloud("queued-resources", "delete", *self._where, "--force", "--quiet")

    def addresses(self) -> list[str]:
        """Returns the internal address of each host."""
        if self._options.dry_run:
            return ["HOST-0"]
        result = self._gcloud(
            *("tpu-vm", "describe", *self._where),
            "--format=value(networkEndpoints[].ipAddress)",
            capture=True,
        )
        return result.stdout.replace(";", " ").split()

    def copy_checkout(self) -> int:
        """Copies the files of the last commit to all hosts; returns the exit code."""
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{folder}/{ARCHIVE}"
            command = ["git", "archive", f"--prefix={FOLDER}/", f"--output={archive}"]
            subprocess.run([*command, "HEAD"], cwd=ROOT, check=True)
            name, zone = self._where
            copied = self._gcloud(
                "tpu-vm", "scp", archive, f"{name}:", zone, "--worker=all"
            )
        return copied.returncode

    def run(
        self, command: str, *, worker: str = "0", capture: bool = False
    ) -> subprocess.CompletedProcess:
        """Runs a shell command on one host, or on "all"."""
        return self._gcloud(
            *("tpu-vm", "ssh", *self._where),
            f"--worker={worker}",
            f"--command={command.strip()}",
            capture=capture,
        )

    def _gcloud(
        self, *arguments: str, capture: bool = False
    ) -> subprocess.CompletedProcess:
        if self._options.dry_run:
            self._show(*arguments)
            return subprocess.CompletedProcess(arguments, 0, "0", "")
        command = ["gcloud", "compute", "tpus", *arguments]
        return subprocess.run(command, capture_output=capture, text=True)

    def _show(self, *arguments: str) -> None:
        print(shlex.join(["gcloud", "compute", "tpus", *arguments]))


def train(vm: TpuVm, options: argparse.Namespace) -> int:
    """Trains until the run ends; returns its exit code."""
    attempts = ATTEMPTS
    while True:
        wait_until_active(vm, options)
        code = train_on(vm, options)
        if code is not None and code != TRY_AGAIN:
            return code
        if vm.state() == "ACTIVE":  # a lost connection, or a fault of the installation
            attempts -= 1
            if not attempts:
                say(f"error: {options.name} failed {ATTEMPTS} times. See above.")
                return 1
        else:
            attempts = ATTEMPTS
        time.sleep(options.poll_seconds)


def wait_until_active(vm: TpuVm, options: argparse.Namespace) -> None:
    """Waits for the VM, and requests it where that was not done or it is gone."""
    if options.dry_run:
        vm.request()
    before = None
    while (state := vm.state()) != "ACTIVE":
        if state in GONE:
            say(f"{options.name} is {state}: requesting the next one.")
            vm.delete()
        elif not state:
            vm.request()
        elif state != before:
            say(f"{options.name} is {state}.")
        before = state
        time.sleep(options.poll_seconds)


def train_on(vm: TpuVm, options: argparse.Namespace) -> int | None:
    """Trains on an active VM; returns the exit code, or None: the VM was lost."""
    install = INSTALL.format(folder=FOLDER, archive=ARCHIVE)
    if vm.copy_checkout() or vm.run(install, worker="all").returncode:
        return None
    python = ".venv/bin/python"
    addresses = vm.addresses()
    program = [python, "-m", "trainer.forever", *options.flags]
    if len(addresses) > 1:
        vm.run(start("server", [python, "scripts/tpu_server.py"]), worker="all")
        servers = ",".join(f"grpc://{address}:8470" for address in addresses)
        program.append(f"--tpu={servers}")
    else:
        program.append("--tpu=local")
    if vm.run(start("train", program)).returncode:
        return None
    vm.run(FOLLOW.format(folder=FOLDER, job="train"))
    result = vm.run(EXIT_CODE.format(folder=FOLDER, job="train"), capture=True)
    code = result.stdout.strip()
    return int(code) if code.isdigit() else None


def start(job: str, program: list[str]) -> str:
    """Returns the shell command that starts a program where it does not run."""
    command = shlex.quote(f"{shlex.join(program)}; echo $? >{job}.exit")
    return START.format(folder=FOLDER, job=job, command=command)


def say(message: str) -> None:
    """Prints a message about the VM."""
    print(message, file=sys.stderr, flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the options of the command line."""
    first, _, rest = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--name", required=True, help="of the VM and its request")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", required=True, help="such as v3-8, v5e-8, v4-32")
    parser.add_argument("--spot", action="store_true", help="cheaper, can be preempted")
    parser.add_argument("--runtime_version", default="", help="by default the type's")
    parser.add_argument("--poll_seconds", type=float, default=30)
    parser.add_argument("--keep", action="store_true", help="the VM, at the end")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the commands, run none"
    )
    parser.add_argument("flags", nargs="*", help="of trainer.forever, after `--`")
    options = parser.parse_args(arguments)
    # Google's name of the v5e.
    options.type = options.type.replace("v5e-", "v5litepod-")
    if not any(flag.startswith("--workdir=gs://") for flag in options.flags):
        parser.error("--workdir=gs://… must name a bucket: the VM's disk goes with it.")
    return options


def main() -> int:
    """Trains, and deletes the VM."""
    options = parse(sys.argv[1:])
    vm = TpuVm(options)
    try:
        code = train(vm, options)
    except KeyboardInterrupt:
        say(f"{options.name} goes on, and costs money. The same command follows it.")
        return 130
    except FileNotFoundError as error:
        say(f"error: `{error.filename}` must be installed.")
        return 2
    except subprocess.CalledProcessError:  # the program has said why
        return 2
    if not options.keep:
        vm.delete()
    return code


if __name__ == "__main__":
    sys.exit(main())
