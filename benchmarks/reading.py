"""How fast does the trainer's input pipeline read, decode and batch?

Command   python benchmarks/reading.py [--records=200000]

Writes records of 1,024 random tokens, reads all batches of one epoch in the trainer's
order, and prints tokens/s: the whole process's, and for each second of CPU time.
"""

import argparse
import os
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

from tfrecords import manifest, reader, schema, writer

SEQUENCE_LENGTH, VOCABULARY_SIZE, NUM_SHARDS, BATCH_SIZE = 1024, 50257, 16, 64


def write_dataset(folder: str, num_records: int) -> manifest.Manifest:
    generator = np.random.default_rng(0)
    per_shard = num_records // NUM_SHARDS
    shards = []
    for index in range(NUM_SHARDS):
        rows = generator.integers(0, VOCABULARY_SIZE, (per_shard, SEQUENCE_LENGTH))
        name = os.path.join(folder, manifest.shard_name("train", index, NUM_SHARDS))
        payloads = map(schema.serialize, rows.astype("<u2"))
        shards.append(writer.write_shard(name, payloads))
    tokens = per_shard * NUM_SHARDS * SEQUENCE_LENGTH
    split = manifest.Split(
        *(1, 1, 1, tokens), shards=tuple(shards), stride=SEQUENCE_LENGTH
    )
    return manifest.Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=SEQUENCE_LENGTH,
        token_dtype="uint16",
        vocabulary_size=VOCABULARY_SIZE,
        end_of_text_id=0,
        pad_id=0,
        padding_side="right",
        tokenizer_fingerprint="",
        tokenizer_engine="",
        added_tokens=(),
        mode="packed",
        config={},
        splits={"train": split},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written = write_dataset(folder, flags.records)
        batches = reader.training_batches(
            *(folder, written),
            global_batch_size=BATCH_SIZE,
            batch_size=BATCH_SIZE,
            start_step=0,
            num_steps=written.split("train").num_records // BATCH_SIZE,
            seed=0,
        )
        began, cpu = time.monotonic(), time.process_time()
        num_tokens = sum(batch["tokens"].shape.num_elements() for batch in batches)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    print(f"{num_tokens:,} tokens in {seconds:.1f} s, {cpu:.1f} s of CPU time")
    print(f"{num_tokens / seconds / 1e6:.1f} M tokens/s")
    print(f"{num_tokens / cpu / 1e6:.1f} M tokens/s per core")


if __name__ == "__main__":
    main()
