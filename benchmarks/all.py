"""Runs the benchmarks of this folder with small settings, one after the other.

Command   make benchmark [TEXT=FILE,… TOKENIZER=FOLDER]
          python -m benchmarks.all [--output=benchmark.json] [--only=step,reading]

Prints the rows that each prints, and writes them to a JSON file, with the versions and
the machine. A benchmark that cannot run here, or a peer that is not installed, is
reported as such. Those of preprocessing need text and GPT-2's tokenizer. The settings
of docs/performance.md are larger: each script says them.
"""

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time
from importlib import metadata

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("tensorflow", "tf-keras", "transformers", "tokenizers", "numpy")
PEERS = ("torch", "datasets", "keras-hub", "jax", "libtpu")
STEP = "--layers=4 --heads=4 --channels=256 --vocabulary=8192 --length=256"
TEXT = "--text={text} --tokenizer={tokenizer}"
# Name -> the script and its settings.
BENCHMARKS = {
    "startup": "startup.py --rounds=1",
    "step": f"training_step.py {STEP} --steps=2 --rounds=3",
    "reading": "reading.py --records=20000",
    "saving": "saving.py --saves=2",
    "bucket": "bucket_reading.py --records=5000 --shards=16,128",
    "many files": "many_files.py --counts=1000",
    "preprocessing": f"preprocessing.py {TEXT} --mebibytes=64 --peer_mebibytes=8 "
    "--repeats=1",
    "memory": f"memory.py {TEXT} --megabytes=100",
    "TPU step": "tpu_step.py --rows=temporaries",
}


def machine() -> dict[str, object]:
    """Describes this machine."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line for line in lines if line.startswith("model name")]
        name = names[0].split(":", 1)[1].strip() if names else name
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0))
    return {"cpu": name, "cores": cores, "load": os.getloadavg()[0]}


def versions() -> dict[str, str | None]:
    """Returns the version of each package; None: it is not installed."""
    result: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*PACKAGES, *PEERS):
        try:
            result[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            result[package] = None
    return result


def measure(settings: str, timeout_seconds: int) -> dict[str, object]:
    """Runs one benchmark; returns its rows, seconds, and why it failed."""
    command = [sys.executable, *f"benchmarks/{settings}".split()]
    start = time.perf_counter()
    result: dict[str, object] = {"command": " ".join(["python", *command[1:]])}
    try:
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return result | {"error": f"took more than {timeout_seconds} s"}
    result["rows"] = process.stdout.splitlines()
    result["seconds"] = round(time.perf_counter() - start, 1)
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["nothing"])[-1]
        result["error"] = f"exit code {process.returncode}: {last}"
    return result


def main() -> None:
    """Runs the program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", default="", help="files, separated by commas")
    parser.add_argument("--tokenizer", default="", help="folder with GPT-2's")
    parser.add_argument("--only", default=",".join(BENCHMARKS))
    parser.add_argument("--timeout_seconds", type=int, default=1800)
    parser.add_argument("--output", type=pathlib.Path, default="benchmark.json")
    options = parser.parse_args()
    report = {"machine": machine(), "versions": versions(), "benchmarks": {}}
    print(json.dumps({"machine": report["machine"], **versions()}))
    for name in options.only.split(","):
        settings = BENCHMARKS[name]
        if "{text}" in settings and not (options.text and options.tokenizer):
            result: dict[str, object] = {"error": "needs --text and --tokenizer"}
        else:
            settings = settings.format(text=options.text, tokenizer=options.tokenizer)
            result = measure(settings, options.timeout_seconds)
        report["benchmarks"][name] = result
        print(f"\n## {name}\n", *result.get("rows", ()), sep="\n")
        if "error" in result:
            print(f"not measured: {result['error']}")
        sys.stdout.flush()
        options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
