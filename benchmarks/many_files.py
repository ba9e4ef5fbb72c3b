"""What does a file cost preprocessing, however many there are?

Command   python benchmarks/many_files.py [--counts=1000,10000,100000]

Makes folders of text files of 300 bytes, each a document, and preprocesses each folder
by the program in a process of its own, with a tokenizer that the first run has trained.
Prints the seconds of the whole program, and milliseconds a file beyond the time that
the program takes for a hundred files.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
FILE_BYTES = 300
FILES_A_FOLDER = 1000


def write_files(folder: pathlib.Path, count: int) -> None:
    """Writes files of different text, a thousand in a folder."""
    for number in range(count):
        path = folder / f"{number // FILES_A_FOLDER:04d}" / f"{number:07d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = f"File {number} says what {number * 7919 % 9973} others do not. " * 9
        path.write_text(text[:FILE_BYTES])


def preprocess(source: pathlib.Path, target: pathlib.Path, tokenizer: str) -> float:
    """Returns the seconds that the program takes."""
    command = [
        *(sys.executable, "-m", "data_pipeline.preprocess"),
        "--config=configs/quickstart.py",
        "--config.data.document=file",
        f"--config.data.tokenizer={tokenizer}",
        "--config.data.vocab_size=512",
        f"--input={source}",
        f"--output_dir={target}",
        "--num_workers=2",
    ]
    start = time.perf_counter()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", default="1000,10000,100000")
    counts = [int(count) for count in parser.parse_args().counts.split(",")]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokenizer = "train"
        print(f"{'files':>8} {'seconds':>9} {'ms a file':>10}")
        base = 0.0
        source = folder / "text"  # grows
        for number, count in enumerate((100, 100, *counts)):
            write_files(source, count)
            target = folder / f"data-{number}"
            seconds = preprocess(source, target, tokenizer)
            if tokenizer == "train":
                tokenizer = str(target / "tokenizer")
            elif not base:
                base = seconds
                print(f"{count:8,} {seconds:9.1f} {'-':>10}")
            else:
                print(
                    f"{count:8,} {seconds:9.1f} {(seconds - base) / count * 1e3:10.2f}"
                )


if __name__ == "__main__":
    main()
