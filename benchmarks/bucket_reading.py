"""How soon and how fast does one host read many shards from a bucket?

Command   PYTHONPATH=. python benchmarks/bucket_reading.py [--records=64000]
              [--shards=16,128,1024] [--delay=0.05]

Reads up to 400 batches, in the trainer's order and from the middle of the shards, from
the tests' object-store server on this machine, by TensorFlow's own client, each time in
a process of its own; and from the disk. The server answers through a proxy written in
Python, after the delay of a real bucket: only the comparison holds there.
"""

import argparse
import os
import tempfile
import time

import reading
from reading import write_dataset

from configs import chatter
from tests import object_store


def upload(store: object_store.ObjectStore, folder: str, bucket: str) -> None:
    store.ask("POST", "/storage/v1/b", {}, f'{{"name": "{bucket}"}}'.encode())
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as stream:
            url = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}"
            store.ask("POST", url, {}, stream.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=64_000)
    parser.add_argument("--shards", default="16,128,1024")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds a request")
    flags = parser.parse_args()
    print(reading.HEADER, flush=True)
    with object_store.serving() as store:
        for num_shards in map(int, flags.shards.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                written = write_dataset(folder, flags.records, num_shards)
                split = written.split("train")
                settings = {
                    "start_step": reading.worst_step(split, 1),
                    "max_batches": 400,
                }
                reading.measure(f"{num_shards} shards, disk", folder, **settings)
                upload(store, folder, f"corpus-{num_shards}")
            store.requests.clear()
            store.faults[:] = [
                object_store.Fault(
                    "^GET .*train-", before=lambda: time.sleep(flags.delay)
                )
            ]
            label = f"{num_shards} shards, bucket"
            chatter.set_environment()  # the block size of TensorFlow's client
            reading.measure(
                label,
                f"gs://corpus-{num_shards}",
                environment=store.environment,
                **settings,
            )
            num_requests = sum("train-" in request for request in store.requests)
            print(f"{'':32}{num_requests:,} requests", flush=True)


if __name__ == "__main__":
    main()
