"""Shows where the time goes from the start of `trainer.train` to its first execution.

Command   python benchmarks/first_step.py --data_dir=data/quickstart \
            [--baseline=CHECKOUT] [--rounds=3]

Trains the quickstart for 20 steps, which are its first execution, in this checkout and
in a CHECKOUT of another version in turn. The stages end when a line appears in the log
or in metrics.jsonl. Prints the medians: seconds, and CPU seconds of all threads, which
other work on the machine changes less.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent
# A stage ends with the first line of the log that its pattern matches.
STAGES = {
    "imports, devices": r"running on",
    "model, optimizer": r"a step is",
    "restore, files": r"step 0: training on",
    "first evaluation": r"step 0: validation",
}
LAST_STAGE = "trace, compile, 20 steps"


def cpu_seconds(pid: int) -> float:
    """Returns user and system seconds of a process and its ended children."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def run(checkout: pathlib.Path, data_dir: str) -> dict[str, tuple[float, float]]:
    """Trains once; returns each stage's seconds and CPU seconds."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "trainer.train"]
        command += ["--config=configs/quickstart.py", f"--data_dir={data_dir}"]
        command += [f"--workdir={workdir}", "--num_virtual_devices=2"]
        command += ["--config.training.num_steps=20"]
        command += ["--config.tracking.sample_interval=0"]
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=os.environ | {"PYTHONPATH": str(checkout)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        ends: dict[str, tuple[float, float]] = {}

        def mark(stage: str) -> None:
            now = time.perf_counter() - start
            ends.setdefault(stage, (now, cpu_seconds(process.pid)))

        def watch_log() -> None:
            for line in process.stderr:
                for stage, pattern in STAGES.items():
                    if re.search(pattern, line):
                        mark(stage)

        threading.Thread(target=watch_log, daemon=True).start()
        metrics = pathlib.Path(workdir, "metrics.jsonl")
        while process.poll() is None and LAST_STAGE not in ends:
            if metrics.exists() and '"loss"' in metrics.read_text():
                mark(LAST_STAGE)
            time.sleep(0.02)
        process.wait()
    stages, previous = {}, (0.0, 0.0)
    for stage in (*STAGES, LAST_STAGE):
        stages[stage] = tuple(b - a for a, b in zip(previous, ends[stage], strict=True))
        previous = ends[stage]
    return {**stages, "all": previous}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="the quickstart's dataset")
    parser.add_argument("--baseline", type=pathlib.Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    data_dir = os.path.abspath(options.data_dir)
    checkouts = [ROOT, *([options.baseline.resolve()] if options.baseline else [])]
    runs: dict[pathlib.Path, list] = {checkout: [] for checkout in checkouts}
    for _ in range(options.rounds):
        for checkout in checkouts:
            runs[checkout].append(run(checkout, data_dir))
    titles = ("seconds", "CPU s", "before", "CPU s")[: 2 * len(checkouts)]
    print(f"{'stage':26}" + "".join(f"{title:>10}" for title in titles))
    for stage in (*STAGES, LAST_STAGE, "all"):
        cells = [
            statistics.median(result[stage][index] for result in runs[checkout])
            for checkout in checkouts
            for index in (0, 1)
        ]
        print(f"{stage:26}" + "".join(f"{cell:10.1f}" for cell in cells))


if __name__ == "__main__":
    main()
