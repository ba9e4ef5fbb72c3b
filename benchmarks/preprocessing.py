"""How fast is preprocessing? Side by side with the usual way, in one run.

Command   make benchmark
          python benchmarks/preprocessing.py --text=FILE,… --tokenizer=FOLDER

The usual way is the transformers example's: `datasets` loads the lines, `map` tokenizes
them in batches and concatenates and cuts them (`group_texts`), in 2 processes. Ours is
`data_pipeline.preprocess`, from text to verified shards, in 2 processes. Beside them
runs the fast tokenizer alone: documents in memory, no reading, no writing.

Every contestant runs in a process of its own and is timed from its start to its end.
The text is the files' content, repeated up to --mebibytes; the usual way gets
--peer_mebibytes of it, since it takes so long.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
SEQUENCE_LENGTH = 1024
NUM_PROCESSES = 2

USUAL_WAY = """
import itertools, sys
from datasets import load_dataset
from transformers import AutoTokenizer
files, tokenizer, output, length, processes = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(tokenizer)
length, processes = int(length), int(processes)
raw = load_dataset("text", data_files=files.split(","), split="train",
                   cache_dir=output, keep_linebreaks=True)
def tokenize(examples):
    return tokenizer(examples["text"])
def group_texts(examples):
    joined = {k: list(itertools.chain(*examples[k])) for k in examples}
    total = len(joined["input_ids"]) // length * length
    result = {k: [t[i:i + length] for i in range(0, total, length)]
              for k, t in joined.items()}
    result["labels"] = result["input_ids"].copy()
    return result
tokens = raw.map(tokenize, batched=True, num_proc=processes, remove_columns=["text"])
blocks = tokens.map(group_texts, batched=True, num_proc=processes)
print(len(blocks) * length)
"""

TOKENIZER_ALONE = """
import sys, time
import numpy as np
from gigatoken import Tokenizer
files, tokenizer = sys.argv[1:]
encoder = Tokenizer(tokenizer)
texts = []
for name in files.split(","):
    data = open(name, encoding="utf-8").read()
    texts += [data[i:i + (1 << 20)] for i in range(0, len(data), 1 << 20)]
began = time.monotonic()
count = 0
for start in range(0, len(texts), 16):
    tokens = encoder.backend.encode_batch(texts[start:start + 16], parallel=True)
    count += len(np.asarray(tokens.layout.content.data).astype(np.uint16))
print(count, time.monotonic() - began)
"""


def run(arguments: list[str], **environment: str) -> tuple[float, str]:
    began = time.monotonic()
    process = subprocess.run(
        arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(process.stderr)
    return time.monotonic() - began, process.stdout


def ours(files: str, tokenizer: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        seconds, output = run(
            [
                *(sys.executable, "-m", "data_pipeline.preprocess"),
                "--config=configs/gpt2_small.py",
                f"--input={files}",
                f"--output_dir={folder}/data",
                f"--config.data.tokenizer={tokenizer}",
                f"--config.data.sequence_length={SEQUENCE_LENGTH}",
                "--config.data.validation_fraction=0",
                f"--num_workers={NUM_PROCESSES}",
                "--json",
            ]
        )
        manifest = json.loads(output)
    return manifest["splits"]["train"]["tokens"], seconds


def usual_way(files: str, tokenizer: str) -> tuple[int, float]:
    with tempfile.TemporaryDirectory() as folder:
        arguments = [files, tokenizer, folder, str(SEQUENCE_LENGTH), str(NUM_PROCESSES)]
        seconds, output = run(
            [sys.executable, "-c", USUAL_WAY, *arguments], HF_HOME=folder, USE_TF="0"
        )
    return int(output.split()[-1]), seconds


def tokenizer_alone(files: str, tokenizer: str) -> tuple[int, float]:
    _, output = run([sys.executable, "-c", TOKENIZER_ALONE, files, tokenizer])
    count, seconds = output.split()
    return int(count), float(seconds)


def write_corpus(texts: str, folder: str, mebibytes: int) -> str:
    """Writes files of 16 MiB, each whole copies of the texts; returns their names."""
    content = b"".join(pathlib.Path(name).read_bytes() for name in texts.split(","))
    copies = max(round((16 << 20) / len(content)), 1)
    num_files = max(round((mebibytes << 20) / (copies * len(content))), 1)
    names = [os.path.join(folder, f"{mebibytes}-{i:04d}.txt") for i in range(num_files)]
    for name in names:
        pathlib.Path(name).write_bytes(content * copies)
    return ",".join(names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="files, separated by commas")
    parser.add_argument("--tokenizer", required=True, help="folder with GPT-2's")
    parser.add_argument("--mebibytes", type=int, default=2048)
    parser.add_argument("--peer_mebibytes", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="", help="a JSON file for the results")
    flags = parser.parse_args()

    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        from transformers import GPT2TokenizerFast

        GPT2TokenizerFast.from_pretrained(flags.tokenizer).save_pretrained(
            f"{folder}/tokenizer"
        )
        files = write_corpus(flags.text, folder, flags.mebibytes)
        peer_files = write_corpus(flags.text, folder, flags.peer_mebibytes)
        contestants = {
            "the usual way (datasets.map)": (usual_way, peer_files),
            "gpt2-tpu, text to shards": (ours, files),
            "gpt2-tpu, the usual way's text": (ours, peer_files),
            "the fast tokenizer alone": (tokenizer_alone, files),
        }
        for _ in range(flags.repeats):
            for name, (contestant, names) in contestants.items():
                count, seconds = contestant(names, f"{folder}/tokenizer")
                rates.setdefault(name, []).append(count / seconds)
                print(f"{name}: {count:,} tokens, {seconds:.1f} s", file=sys.stderr)
    result = {name: statistics.median(values) for name, values in rates.items()}
    own = result["gpt2-tpu, text to shards"]
    print(f"{'':34}{'M tokens/s':>12}{'ours is':>12}")
    for name, rate in result.items():
        print(f"{name:34}{rate / 1e6:>12.2f}{own / rate:>11.2f}x")
    if flags.output:
        pathlib.Path(flags.output).write_text(json.dumps(rates, indent=1) + "\n")


if __name__ == "__main__":
    main()
