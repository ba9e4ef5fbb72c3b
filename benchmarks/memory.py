"""How much memory does a preprocessing worker take, from 100 MB to 2 GB of text?

Command   python benchmarks/memory.py --text=FILE,… --tokenizer=FOLDER

Prints the peak of the largest process of each run (the program or one of its two
workers), and that of a process which only imports what a worker imports, with the
tokenizer loaded.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

from preprocessing import ROOT, write_corpus

# A small process that starts another one sees the other's peak, not its own.
PEAK = (
    "import resource, subprocess, sys; "
    "subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
)
WORKER = (
    "import sys; from data_pipeline import pipeline; "
    "from data_pipeline.tokens import encoder; "
    "encoder.FastEncoder(open(sys.argv[1] + '/tokenizer.json').read(), "
    "allow_special_tokens=False).encode([b'text'])"
)


def peak_mebibytes(arguments: list[str]) -> float:
    process = subprocess.run(
        [sys.executable, "-c", PEAK, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(process.stderr)
    return float(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="files, separated by commas")
    parser.add_argument("--tokenizer", required=True, help="folder with GPT-2's")
    parser.add_argument("--megabytes", default="100,500,2000")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        from transformers import GPT2TokenizerFast

        tokenizer = f"{folder}/tokenizer"
        GPT2TokenizerFast.from_pretrained(flags.tokenizer).save_pretrained(tokenizer)
        own = peak_mebibytes([sys.executable, "-c", WORKER, tokenizer])
        print(f"{'imports and tokenizer alone':34}{own:>8.0f} MiB")
        for size in map(int, flags.megabytes.split(",")):
            for document in ("file", "line"):
                names = write_corpus(flags.text, folder, size * 10**6 >> 20)
                peak = peak_mebibytes(
                    [
                        *(sys.executable, "-m", "data_pipeline.preprocess"),
                        "--config=configs/gpt2_small.py",
                        f"--input={names}",
                        f"--output_dir={folder}/{size}-{document}",
                        f"--config.data.tokenizer={tokenizer}",
                        f"--config.data.document={document}",
                        "--config.data.validation_fraction=0",
                        "--num_workers=2",
                    ]
                )
                print(f"{size:>6} MB, a document a {document:15}{peak:>8.0f} MiB")
                for name in names.split(","):
                    pathlib.Path(name).unlink()


if __name__ == "__main__":
    main()
