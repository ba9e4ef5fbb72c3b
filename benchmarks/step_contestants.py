"""The contestants of `training_step.py`: each imports its framework when it runs.

`python benchmarks/step_contestants.py NAME SHAPE` builds one and prints its versions;
for each line of standard input it then makes some steps, and prints seconds, loss and
peak memory as JSON. NAME and SHAPE (JSON) are those of `training_step.py`.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata

import numpy as np

PACKAGES = ("tensorflow", "tf_keras", "torch", "transformers", "triton", "numpy")
DROPOUT = 0.1
LEARNING_RATE = 1e-4

# Makes some steps and returns the loss of the last; and the peak bytes of its memory.
Runner = tuple[Callable[[], float], Callable[[], int]]


def random_tokens(shape: dict[str, int]) -> np.ndarray:
    """Returns the batch that all train on, int32 [microbatch_size, length]."""
    size = (shape["microbatch_size"], shape["length"])
    generator = np.random.default_rng(0)
    return generator.integers(0, shape["vocabulary"], size, dtype=np.int32)


def model_fields(shape: dict[str, int]) -> dict[str, int]:
    """Returns the fields of transformers' GPT2Config."""
    return {
        "vocab_size": shape["vocabulary"],
        "n_positions": shape["length"],
        "n_layer": shape["layers"],
        "n_head": shape["heads"],
        "n_embd": shape["channels"],
    }


def ours(shape: dict[str, int], precision: str, remat: str = "none") -> Runner:
    """Returns the execution of `trainer.train`."""
    import packed_data
    import tensorflow as tf

    from configs import schema
    from tfrecords.manifest import Split
    from trainer.runtime import strategy as strategies
    from trainer.tasks.create import create_training_step

    fields = model_fields(shape)
    vocabulary = fields.pop("vocab_size")
    size = shape["microbatch_size"]
    config = schema.Config(
        model=schema.ModelConfig(**fields),
        optimizer=schema.OptimizerConfig(
            name="adamw",
            learning_rate=LEARNING_RATE,
            schedule="constant",
            warmup_fraction=0.0,
        ),
        training=schema.TrainingConfig(
            global_batch_size=size,
            microbatch_size=size,
            precision=precision,
            remat=remat,
            dropout=DROPOUT,
            steps_per_execution=shape["steps"],
        ),
    )
    manifest = packed_data.describe(Split(tokens=10**10), shape["length"], vocabulary)
    batch = {
        "tokens": random_tokens(shape),
        "length": np.full(size, shape["length"], np.int32),
        "row": np.arange(size, dtype=np.int32),
    }
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    strategy = strategies.create("", 0)
    with strategy.scope():
        step = create_training_step(config, manifest, strategy, num_steps=10**6)
        execute = step.make_train_function()
    iterator = iter(strategy.distribute_datasets_from_function(lambda _: batches))
    return lambda: float(execute(iterator)["loss"]), tensorflow_peak_bytes


def tfgpt2(shape: dict[str, int], precision: str) -> Runner:
    """Returns what Keras `fit` executes, compiled by XLA where that is faster."""
    import tensorflow as tf
    import tf_keras
    from transformers import GPT2Config, TFGPT2LMHeadModel

    if precision == "bfloat16":
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    on_gpu = bool(tf.config.list_physical_devices("GPU"))
    model = TFGPT2LMHeadModel(GPT2Config(**model_fields(shape)))
    model.build_in_name_scope()
    model.compile(
        optimizer=tf_keras.optimizers.AdamW(LEARNING_RATE, jit_compile=False),
        steps_per_execution=shape["steps"],
        # On a CPU XLA has no fast bfloat16 product.
        jit_compile=on_gpu or precision == "float32",
    )
    tokens = random_tokens(shape)
    batch = {"input_ids": tokens, "labels": tokens}
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    execute = model.make_train_function()

    def run() -> float:
        model.reset_metrics()  # the loss is a mean, that of this execution
        return float(execute(iterator)["loss"])

    return run, tensorflow_peak_bytes


def tensorflow_peak_bytes() -> int:
    """Returns the peak of the GPU's allocated memory, or of the process."""
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    return process_peak_bytes()


def process_peak_bytes() -> int:
    """Returns the peak of the process's memory."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def torch(shape: dict[str, int], precision: str, compiled: str = "") -> Runner:
    """Returns steps of GPT2LMHeadModel with scaled_dot_product_attention."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as TensorFlow
    config = GPT2Config(**model_fields(shape), attn_implementation="sdpa")
    model = GPT2LMHeadModel(config).to(device).train()
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, fused=True)
    tokens = torch.from_numpy(random_tokens(shape).astype(np.int64))

    def run() -> float:
        for _ in range(shape["steps"]):
            batch = tokens.to(device)
            with torch.autocast(device, torch.bfloat16, precision == "bfloat16"):
                loss = forward(input_ids=batch, labels=batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return run, torch.cuda.max_memory_allocated if on_gpu else process_peak_bytes


def work(name: str, shape: dict[str, int]) -> None:
    """Builds a contestant; makes and times steps for each line of standard input."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    kind, precision, *rest = name.split("-")
    builders = {"tfgpt2": tfgpt2, "torch": torch}
    run, peak_bytes = builders.get(kind, ours)(shape, precision, *rest)
    installed = {d.name.replace("-", "_"): d.version for d in metadata.distributions()}
    versions = {package: installed.get(package) for package in PACKAGES}
    print(json.dumps({"python": platform.python_version(), **versions}), file=answers)
    for _ in sys.stdin:
        start = time.perf_counter()
        loss = run()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "loss": loss, "peak_bytes": peak_bytes()}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    work(sys.argv[1], json.loads(sys.argv[2]))
