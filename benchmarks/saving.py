"""What does a training step lose to a save?

Command   python benchmarks/saving.py [--size=small] [--saves=5]

Builds GPT-2 of a size with Adafactor and saves it to a local disk, by turns so that
training waits for the whole save, and as the trainer does it: it waits for a copy of
the values, and a thread writes them. Prints the medians, and what share of a whole save
the step waits in the second way.
"""

import argparse
import os
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

from reading import write_dataset

from configs.schema import Config, ModelConfig
from trainer.checkpoints.run_checkpoints import Checkpoints
from trainer.models.variables import num_bytes
from trainer.runtime import strategy
from trainer.tasks.create import create_training_step

SHAPES = {
    "small": ModelConfig(),
    "medium": ModelConfig(n_layer=24, n_head=16, n_embd=1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SHAPES, default="small")
    parser.add_argument("--saves", type=int, default=5)
    flags = parser.parse_args()
    config = Config(model=SHAPES[flags.size])
    waits: dict[str, list[float]] = {"whole save": [], "copy only": []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_dataset(folder, 16)
        trained = create_training_step(config, manifest, strategy.mirror_cpu(1), 100)
        checkpoints = Checkpoints(
            folder, training_step=trained, config=config, manifest=manifest
        )
        for _ in range(flags.saves):
            for name, seconds in waits.items():
                trained.optimizer.iterations.assign_add(1)
                start = time.perf_counter()
                checkpoints.save()
                if name == "whole save":
                    checkpoints.close()
                seconds.append(time.perf_counter() - start)
                checkpoints.close()
    variables = [*trained.model.variables, *trained.optimizer.variables]
    whole, copy = (statistics.median(seconds) for seconds in waits.values())
    print(f"GPT-2 {flags.size}, {num_bytes(variables) / 1e6:,.0f} MB")
    print(f"the step waits for the whole save {whole:8.2f} s")
    print(f"the step waits for the copy       {copy:8.2f} s = {copy / whole:.1%}")


if __name__ == "__main__":
    main()
