"""How fast does the trainer read from a bucket, with which block cache?

Command   PYTHONPATH=. python benchmarks/bucket_reading.py [--records=20000]

Reads all batches of one epoch, in the trainer's order, from the tests' object-store
server on this machine, by TensorFlow's own client, each time in a process of its own;
and from the disk. Prints tokens/s and the process's peak memory. The server answers
through a proxy written in Python: on a real bucket only the comparison holds.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from reading import BATCH_SIZE, SEQUENCE_LENGTH, write_dataset

from tests import object_store
from tfrecords import manifest, reader

BLOCKS = (64, 16, 8, 2)  # MiB; TensorFlow's default is 64


def read(data_dir: str) -> None:
    """Prints seconds, without TensorFlow's start, and peak memory in MiB."""
    dataset = manifest.load(data_dir)
    num_steps = dataset.split("train").num_records // BATCH_SIZE
    start = time.perf_counter()
    batches = reader.training_batches(
        *(data_dir, dataset),
        global_batch_size=BATCH_SIZE,
        batch_size=BATCH_SIZE,
        start_step=0,
        num_steps=num_steps,
        seed=0,
    )
    for _ in batches:
        pass
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(seconds, peak, num_steps * BATCH_SIZE * SEQUENCE_LENGTH)


def measure(label: str, data_dir: str, environment: dict[str, str]) -> None:
    process = subprocess.run(
        [sys.executable, __file__, f"--read={data_dir}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(process.stderr)
    seconds, peak, tokens = map(float, process.stdout.split())
    print(f"{label:24}{tokens / seconds / 1e6:8.1f} M tokens/s{peak:10,.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.read:
        read(flags.read)
        return
    with tempfile.TemporaryDirectory() as folder, object_store.serving() as store:
        written = write_dataset(folder, flags.records)
        with open(os.path.join(folder, manifest.FILE_NAME), "w") as stream:
            stream.write(manifest.to_json(written))
        store.ask("POST", "/storage/v1/b", {}, b'{"name": "corpus"}')
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as stream:
                url = f"/upload/storage/v1/b/corpus/o?uploadType=media&name={name}"
                store.ask("POST", url, {}, stream.read())
        measure("disk", folder, {})
        for block in BLOCKS:
            environment = {"GCS_READ_CACHE_BLOCK_SIZE_MB": str(block)}
            label = f"bucket, blocks of {block} MiB"
            measure(label, "gs://corpus", store.environment | environment)


if __name__ == "__main__":
    main()
