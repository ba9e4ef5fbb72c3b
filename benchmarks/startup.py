"""Measures how fast each program answers, beside `python -c pass`.

Command   python benchmarks/startup.py [--baseline=CHECKOUT] [--rounds=5]

For each program: `--help`, a missing flag, an unknown flag or config field, and an
impossible config. Each round runs every case once, one after the other, and in each
checkout, so that a busy moment hits all of them; the table has the medians in seconds.
A CHECKOUT is the root of another version, run with the same Python.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = "--config=configs/quickstart.py"
_UNKNOWN_FIELD = (_CONFIG, "--config.optimizer.lerning_rate=1")
_IMPOSSIBLE = (_CONFIG, "--config.training.microbatch_size=3")
# Program -> case -> arguments. Without a config, an unknown flag stands for a field.
_WITH_CONFIG = {
    "unknown field": _UNKNOWN_FIELD,
    "impossible config": (*_IMPOSSIBLE, "--data_dir=a", "--workdir=b"),
}
CASES: dict[str, dict[str, tuple[str, ...]]] = {
    "data_pipeline.preprocess": {
        "missing flag": (_CONFIG,),
        "unknown field": _UNKNOWN_FIELD,
        "impossible config": (*_IMPOSSIBLE, "--output_dir=a"),
    },
    "tfrecords.inspect": {
        "missing flag": (),
        "unknown field": ("--shwo=3",),
    },
    "trainer.train": {"missing flag": (_CONFIG,), **_WITH_CONFIG},
    "trainer.forever": {"missing flag": (_CONFIG,), **_WITH_CONFIG},
    "trainer.study": {
        "missing flag": (_CONFIG,),
        "unknown field": (_CONFIG, "--grid.optimizer.lerning_rate=1"),
        "impossible config": (
            *(_CONFIG, "--data_dir=a", "--workdir=b"),
            "--grid.training.microbatch_size=2,3",
        ),
    },
    "trainer.evaluate": {
        "missing flag": ("--data_dir=a",),
        "unknown field": ("--workdri=a",),
        "impossible config": ("--workdir=a", "--data_dir=b", "--stride=-1"),
    },
    "trainer.generate": {
        "missing flag": ("--prompt=a",),
        "unknown field": ("--workdri=a",),
        "impossible config": ("--workdir=a", "--num_beams=2", "--top_k=5"),
    },
    "trainer.predict": {
        "missing flag": ("--text=a",),
        "unknown field": ("--workdri=a",),
        "impossible config": ("--workdir=a", "--checkpoint=b", "--text=c"),
    },
    "trainer.export": {
        "missing flag": ("--workdir=a",),
        "unknown field": ("--workdri=a",),
        "impossible config": (
            "--workdir=a",
            "--output_dir=/nowhere",
            "--format=saved_model",
            "--push_to_hub=a/b",
        ),
    },
    "trainer.advise": {
        "missing flag": (),
        "unknown field": ("--tpu_tpye=v3-8",),
        "impossible config": ("--data_dir=a", "--tpu_type=v9-8"),
    },
    "trainer.plan": {
        "missing flag": (_CONFIG, "--config.hardware.tpu_type="),
        "unknown field": _UNKNOWN_FIELD,
        "impossible config": (*_IMPOSSIBLE, "--tpu_type=v3-8"),
    },
    "trainer.report": {
        "missing flag": ("--workdir=a",),
        "unknown field": ("--workdri=a",),
        "impossible config": ("--workdir=a", "--workdirs=b", "--output=c.html"),
    },
    "trainer.doctor": {
        "missing flag": (),
        "unknown field": _UNKNOWN_FIELD,
        "impossible config": _IMPOSSIBLE,
    },
}


def seconds(arguments: list[str], checkout: pathlib.Path) -> float:
    """Runs Python once; returns the seconds until it has ended."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        check=False,
    )
    return time.perf_counter() - start


def measure(checkouts: list[pathlib.Path], rounds: int) -> dict[tuple, list[float]]:
    """Returns the seconds of each (checkout, program, case), one for each round."""
    commands: dict[tuple[str, str], list[str]] = {("python", "pass"): ["-c", "pass"]}
    for program, cases in CASES.items():
        for case, arguments in {"--help": ("--help",), **cases}.items():
            commands[program, case] = ["-m", program, *arguments]
    times: dict[tuple, list[float]] = {}
    for _ in range(rounds):
        for name, arguments in commands.items():
            for checkout in checkouts:
                value = seconds(arguments, checkout)
                times.setdefault((checkout, *name), []).append(value)
    return times


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", type=pathlib.Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    checkouts = [ROOT, *([options.baseline.resolve()] if options.baseline else [])]
    medians = {
        name: statistics.median(values)
        for name, values in measure(checkouts, options.rounds).items()
    }
    nothing = {checkout: medians[checkout, "python", "pass"] for checkout in checkouts}
    print(f"{'program':26}{'case':20}{'seconds':>9}{'over pass':>11}", end="")
    print(f"{'before':>9}" if options.baseline else "")
    for (checkout, program, case), value in medians.items():
        if checkout != ROOT:
            continue
        row = f"{program:26}{case:20}{value:9.2f}{value - nothing[ROOT]:11.2f}"
        before = [f"{medians[other, program, case]:9.2f}" for other in checkouts[1:]]
        print(row, *before, sep="")


if __name__ == "__main__":
    main()
