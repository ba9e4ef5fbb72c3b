"""How fast does the input pipeline of one host read, and how soon after a resume?

Command   python benchmarks/reading.py [--records=200000] [--shards=16]

Writes records of 1,024 random tokens. For 1, 4 and 16 hosts, the first host's part is
read in a process of its own: from the start, and after a resume at the place with the
most bytes before it in its shards. Prints the time to the first batch, then records/s
and tokens/s, for each second of CPU time too, and the memory beyond TensorFlow's start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import packed_data

from tfrecords import manifest, order, reader, schema, writer

SEQUENCE_LENGTH, VOCABULARY_SIZE, NUM_SHARDS, BATCH_SIZE = 1024, 50257, 16, 64
HEADER = f"{'':32}{'first batch':>12}{'records/s':>11}{'M tokens/s':>12}"
HEADER += f"{'a core':>8}{'memory':>11}"


def write_dataset(
    folder: str, num_records: int, num_shards: int = NUM_SHARDS
) -> manifest.Manifest:
    generator = np.random.default_rng(0)
    per_shard = num_records // num_shards
    shards = []
    for index in range(num_shards):
        shape = (per_shard, SEQUENCE_LENGTH)
        rows = generator.integers(0, VOCABULARY_SIZE, shape, np.uint16)
        name = os.path.join(folder, manifest.shard_name("train", index, num_shards))
        payloads = map(schema.serialize, rows.astype("<u2"))
        shards.append(writer.write_shard(name, payloads))
    tokens = per_shard * num_shards * SEQUENCE_LENGTH
    split = manifest.Split(
        *(1, 1, 1, tokens), shards=tuple(shards), stride=SEQUENCE_LENGTH
    )
    written = packed_data.describe(split, SEQUENCE_LENGTH, VOCABULARY_SIZE)
    with open(os.path.join(folder, manifest.FILE_NAME), "w") as stream:
        stream.write(manifest.to_json(written))
    return written


def worst_step(split: manifest.Split, num_hosts: int) -> int:
    """Returns the step of the first epoch with the most records before it in shards."""
    sizes = np.array([shard.num_records for shard in split.shards])

    def records_before(step: int) -> int:
        start = step * BATCH_SIZE * num_hosts
        (phase, *_) = order.epoch_phases(
            sizes, epoch=0, seed=0, start=start, num_hosts=num_hosts
        )
        return int(phase.first.sum())

    num_steps = split.num_records // (BATCH_SIZE * num_hosts)
    return max(range(0, num_steps, max(num_steps // 256, 1)), key=records_before)


def peak_mib() -> float:
    """Returns the peak memory of this process, without its parent's."""
    with open("/proc/self/status") as lines:
        peak = next(line for line in lines if line.startswith("VmHWM"))
    return int(peak.split()[1]) / 1024


def forget_cached(path: str) -> None:
    """Lets the kernel drop what it keeps of a local file."""
    if os.path.exists(path):
        descriptor = os.open(path, os.O_RDONLY)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def read(data_dir: str, num_hosts: int, start_step: int, max_batches: int) -> None:
    """Prints as JSON how the first host reads."""
    import tensorflow as tf

    dataset = manifest.load(data_dir)
    options = tf.data.Options()
    options.autotune.enabled = False  # as trainer/runtime/distributed_input.py does
    list(tf.data.Dataset.range(9).map(lambda x: x + 1).batch(3))
    for shard in dataset.split("train").shards:
        forget_cached(os.path.join(data_dir, shard.name))
    before = peak_mib()
    began = time.perf_counter()
    batches = reader.training_batches(
        *(data_dir, dataset),
        global_batch_size=BATCH_SIZE * num_hosts,
        batch_size=BATCH_SIZE,
        start_step=start_step,
        num_steps=start_step + max_batches,
        seed=0,
        num_hosts=num_hosts,
    )
    iterator = iter(batches.with_options(options))
    next(iterator)
    first, cpu = time.perf_counter(), time.process_time()
    for _ in iterator:
        pass
    seconds, cpu = time.perf_counter() - first, time.process_time() - cpu
    num_records = (max_batches - 1) * BATCH_SIZE
    print(
        json.dumps(
            {
                "first_batch_seconds": first - began,
                "records_per_second": num_records / seconds,
                "records_per_cpu_second": num_records / cpu,
                "memory_mib": peak_mib() - before,
            }
        )
    )


def measure(
    label: str,
    data_dir: str,
    *,
    num_hosts: int = 1,
    start_step: int = 0,
    max_batches: int,
    environment: dict[str, str] | None = None,
) -> None:
    """Prints a row of the table."""
    arguments = [data_dir, num_hosts, start_step, max_batches]
    process = subprocess.run(
        [sys.executable, __file__, f"--read={json.dumps(arguments)}"],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
    )
    if process.returncode:
        sys.exit(f"{label}\n{process.stderr}")
    result = json.loads(process.stdout.splitlines()[-1])
    rate, core = result["records_per_second"], result["records_per_cpu_second"]
    print(
        f"{label:32}{result['first_batch_seconds']:10.2f} s{rate:11,.0f}"
        f"{rate * SEQUENCE_LENGTH / 1e6:12.1f}{core * SEQUENCE_LENGTH / 1e6:8.1f}"
        f"{result['memory_mib']:7,.0f} MiB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    parser.add_argument("--shards", type=int, default=NUM_SHARDS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.read:
        read(*json.loads(flags.read))
        return
    with tempfile.TemporaryDirectory() as folder:
        split = write_dataset(folder, flags.records, flags.shards).split("train")
        megabytes = split.shards[0].num_bytes / 1e6
        print(f"{flags.shards} shards of {megabytes:.1f} MB, on the disk")
        print(HEADER)
        for num_hosts in (1, 4, 16):
            # At most a host's share of an epoch, and the start of the next.
            whole = split.num_records // (BATCH_SIZE * num_hosts)
            max_batches = min(whole, 800) + 1
            settings = {"num_hosts": num_hosts, "max_batches": max_batches}
            measure(f"{num_hosts} hosts, from the start", folder, **settings)
            worst = worst_step(split, num_hosts)
            label = f"{num_hosts} hosts, resumed at step {worst}"
            measure(label, folder, start_step=worst, **settings)


if __name__ == "__main__":
    main()
