"""Times a training step beside plain TFGPT2 and PyTorch, on this machine's GPU or CPU.

Command   python benchmarks/training_step.py [--microbatch_size=8] [--output=step.json]
            [--torch_python=PYTHON] [--checkouts=NAME=FOLDER,…] [--contestants=NAME-…]

Every contestant trains GPT-2 with dropout 0.1 and AdamW on the same random tokens, in a
process of its own, so that PyTorch may be of another environment. Rounds alternate
between them. A step of ours is what `trainer.train` executes; TFGPT2 is what Keras
`fit` executes; PyTorch is transformers' GPT2LMHeadModel with SDPA, autocast and the
fused AdamW. All use TF32 for float32 products on a GPU, as is the default of
TensorFlow. A contestant that fails is reported with its last message.

Names are parts joined by "-": KIND-PRECISION, then for ours the `remat` policy, for
PyTorch "compiled". A KIND of `--checkouts` is ours in another checkout.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import step_contestants

ROOT = pathlib.Path(__file__).parent.parent
CONTESTANTS = (
    *("ours-float32", "ours-bfloat16", "ours-bfloat16-block"),
    *("tfgpt2-float32", "tfgpt2-bfloat16"),
    *("torch-float32", "torch-bfloat16", "torch-bfloat16-compiled"),
)
# Published dense bfloat16 FLOP/s. Source: NVIDIA's data sheets, the SXM cards.
PEAK_FLOPS = {"A100": 312e12, "H100": 989.4e12, "H200": 989.4e12}


class Contestant:
    """A contestant's process.

    Attributes:
      error: the last message of a process that has ended; "" while it runs.
      result: versions, the first execution's seconds, and of each round the seconds.
    """

    def __init__(self, name: str, python: str, checkout: pathlib.Path, shape: dict):
        self.error = ""
        self.result: dict[str, Any] = {"seconds": []}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 open while it runs
        environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_USE_LEGACY_KERAS": "1",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the others need memory, too
            "USE_TF" if name.startswith("torch-") else "USE_TORCH": "0",
        }
        command = [python, step_contestants.__file__, name, json.dumps(shape)]
        self._process = subprocess.Popen(
            command,
            cwd=checkout,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def answer(self) -> dict[str, Any]:
        """Waits for an answer; sets `error` where the process ends instead."""
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        self._process.wait()
        self._log.seek(0)
        lines = self._log.read().strip().splitlines() or ["nothing"]
        errors = [line for line in lines if "Error" in line]
        self.error = (errors or lines)[-1][:500]
        print("\n".join(lines[-30:]), file=sys.stderr)
        return {}

    def ask(self) -> dict[str, Any]:
        """Lets it make its steps."""
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        return self.answer()

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()


def measure(contestants: dict[str, Contestant], rounds: int) -> Iterator[str]:
    """Runs all in turn, first once for compilation; yields what it has done."""
    for name, contestant in contestants.items():
        contestant.result["versions"] = contestant.answer()
        if not contestant.error:
            first = contestant.ask()
            contestant.result["first_seconds"] = first.get("seconds")
            contestant.result["first_loss"] = first.get("loss")
        yield f"{name}: {contestant.error or contestant.result['first_seconds']}"
    for number in range(rounds):
        for contestant in contestants.values():
            if not contestant.error and (answer := contestant.ask()):
                contestant.result["seconds"].append(answer.pop("seconds"))
                contestant.result.update(answer)
        yield f"round {number + 1} of {rounds}"


def report(
    contestants: dict[str, Contestant], shape: dict[str, int], card: str
) -> dict[str, Any]:
    """Returns the figures of all contestants, with versions and machine."""
    tokens = shape["microbatch_size"] * shape["length"]
    flops = step_flops(shape)
    peak = next((value for key, value in PEAK_FLOPS.items() if key in card), None)
    rows = {}
    for name, contestant in contestants.items():
        row = dict(contestant.result, error=contestant.error)
        if row["seconds"] and not contestant.error:
            steps = [value / shape["steps"] for value in row["seconds"]]
            median = statistics.median(steps)
            row["step_ms"] = 1000 * median
            row["spread"] = (max(steps) - min(steps)) / median
            row["tokens_per_second"] = tokens / median
            row["mfu"] = flops / median / peak if peak else None
        rows[name] = row
    machine = f"{card or 'no GPU'}; {os.cpu_count()} x {platform.machine()}"
    return {"machine": machine, "shape": shape, "step_flops": flops, "rows": rows}


def step_flops(shape: dict[str, int]) -> int:
    """Returns the FLOPs that MFU counts, as the trainer does."""
    sys.path.insert(0, str(ROOT))
    from transformers import GPT2Config

    from trainer.models.gpt2 import costs

    config = GPT2Config(**step_contestants.model_fields(shape))
    return costs.step_flops(config, shape["length"], shape["microbatch_size"])


def table(figures: dict[str, Any]) -> Iterator[str]:
    """Yields the lines of the table."""
    yield f"{figures['machine']}; {figures['shape']}"
    yield (
        f"{'':26}{'ms/step':>9}{'spread':>8}{'tokens/s':>10}{'MFU':>7}"
        f"{'peak GB':>9}{'first s':>9}{'loss':>8}"
    )
    for name, row in figures["rows"].items():
        if "step_ms" not in row:
            yield f"{name:26} not measured: {row['error']}"
            continue
        yield (
            f"{name:26}{row['step_ms']:9.1f}{row['spread']:8.1%}"
            f"{row['tokens_per_second']:10,.0f}"
            + (f"{row['mfu']:7.1%}" if row["mfu"] else f"{'–':>7}")
            + f"{row['peak_bytes'] / 1e9:9.2f}{row['first_seconds']:9.1f}"
            f"{row['loss']:8.3f}"
        )


def graphics_card() -> str:
    """Returns name, driver and memory of the GPU; "" without one."""
    query = "--query-gpu=name,driver_version,memory.total"
    try:
        return subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def parse_arguments() -> argparse.Namespace:
    """Reads the command line; the defaults are GPT-2 small's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"layers": 12, "heads": 12, "channels": 768, "vocabulary": 50257}
    sizes |= {"length": 1024, "microbatch_size": 8, "steps": 20}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--contestants", default=",".join(CONTESTANTS))
    parser.add_argument("--checkouts", default="", help="NAME=FOLDER,…")
    parser.add_argument("--torch_python", default=sys.executable)
    parser.add_argument("--output", type=pathlib.Path, help="JSON of all figures")
    arguments = parser.parse_args()
    arguments.shape = {name: getattr(arguments, name) for name in sizes}
    return arguments


def main() -> None:
    """Prints the table, and writes the figures after each round."""
    arguments = parse_arguments()
    named = filter(None, arguments.checkouts.split(","))
    checkouts = {name: folder for name, _, folder in (n.partition("=") for n in named)}
    contestants = {}
    for name in arguments.contestants.split(","):
        kind = name.split("-")[0]
        if kind not in ("ours", "tfgpt2", "torch", *checkouts):
            sys.exit(f"A contestant's kind must be known. Received: {name}.")
        python = arguments.torch_python if kind == "torch" else sys.executable
        checkout = pathlib.Path(checkouts.get(kind, ROOT)).resolve()
        contestants[name] = Contestant(name, python, checkout, arguments.shape)
    card = graphics_card()
    try:
        for progress in measure(contestants, arguments.rounds):
            print(progress, file=sys.stderr, flush=True)
            figures = report(contestants, arguments.shape, card)
            if arguments.output:
                arguments.output.write_text(json.dumps(figures, indent=1) + "\n")
    finally:
        for contestant in contestants.values():
            contestant.end()
    print(*table(figures), sep="\n")


if __name__ == "__main__":
    main()
