"""Times generation beside PyTorch's `generate`: GPT-2 small's shape, random weights.

Command   python benchmarks/generation.py [--cases=1:128:32,32:900:8] [--threads=1]

A case is batch size : tokens of each prompt : new tokens. Both take the likeliest token
each time, in float32, in one process, one after the other. The table has the seconds to
the first new token, and from the median interval after it, new tokens a second.
"""

import argparse
import os
import statistics
import time

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow as tf
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from trainer.generation.loop import Text, continue_rows
from trainer.models.gpt2 import cached, weights

CONFIG = GPT2Config()


def ours() -> callable:
    """Returns a function that generates, and returns the time of each token."""
    model = weights.build(CONFIG)
    weights.initialize(model, 0)
    times = []

    def note(new: np.ndarray) -> np.ndarray:
        times.append(time.perf_counter())
        return np.zeros(len(new), bool)

    signature = [tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([], tf.int32)]

    @tf.function(autograph=False, input_signature=signature)
    def generate(tokens: tf.Tensor, max_new_tokens: tf.Tensor) -> tf.Tensor:
        return continue_rows(
            cached.CachedDecoder(model),
            Text(tokens, tf.fill([tf.shape(tokens)[0]], tf.shape(tokens)[1])),
            max_new_tokens=max_new_tokens,
            end=0,
            score=lambda logits, text, number: logits,
            is_finished=lambda new: tf.ensure_shape(
                tf.numpy_function(note, [new], tf.bool), [None]
            ),
        )

    def run(prompts: np.ndarray, max_new_tokens: int) -> list[float]:
        times[:] = [time.perf_counter()]
        generate(tf.constant(prompts, tf.int32), tf.constant(max_new_tokens))
        return list(times)

    return run


def pytorchs() -> callable:
    """As `ours`."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(CONFIG).eval()

    def run(prompts: np.ndarray, max_new_tokens: int) -> list[float]:
        tokens = torch.tensor(prompts)
        times = [time.perf_counter()]

        def note(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            times.append(time.perf_counter())
            return scores

        with torch.no_grad():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=0,
                logits_processor=[note],
            )
        return times

    return run


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default="1:128:32,1:900:32,32:128:16,32:900:8")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    sides = {"ours": ours(), "PyTorch": pytorchs()}
    generator = np.random.default_rng(0)
    for run in sides.values():  # the first call is not of interest
        run(np.ones([2, 3], int), 2)
    print(f"{'batch':>6}{'prompt':>8}{'side':>10}{'first token s':>15}{'tokens/s':>10}")
    for case in options.cases.split(","):
        size, length, count = map(int, case.split(":"))
        prompts = generator.integers(0, CONFIG.vocab_size, (size, length))
        for name, run in sides.items():
            times = run(prompts, count)
            rate = size / statistics.median(np.diff(times[1:]))
            first = times[1] - times[0]
            print(f"{size:6}{length:8}{name:>10}{first:15.2f}{rate:10.1f}", flush=True)


if __name__ == "__main__":
    main()
