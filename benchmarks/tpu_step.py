"""What does a training step take on a TPU? By its compiler, beside plain TFGPT2.

`python benchmarks/tpu_step.py` compiles both for one board each and prints a table; it
needs no TPU, the extra `plan`, and about two hours on two cores. `--rows=temporaries`
runs a part. Every program is the whole step: forward, backward, the all-reduce over
8 replicas, and the optimizer's update.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("USE_TORCH", "0")

import tensorflow as tf
import tf_keras
from absl import app, flags
from transformers import GPT2Config, TFGPT2LMHeadModel

from configs import tpu
from configs.schema import Config
from trainer.models.architecture import Options
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers import cross_entropy
from trainer.planning import compilation, search
from trainer.tasks import causal_lm
from trainer.tasks.create import assemble

FLAGS = flags.FLAGS
LENGTH = 1024
SHAPES = {  # layers, heads, channels
    "small": (12, 12, 768),
    "medium": (24, 16, 1024),
    "large": (36, 20, 1280),
    "xl": (48, 25, 1600),
}
# Row -> (title, cases). A case is (label, what `compiled` takes).
OURS = {"step": "ours", "optimizer": "adafactor"}
PLAIN = {"step": "plain", "optimizer": "adafactor"}
ROWS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "temporaries": (
        "temporaries, MB: small, microbatch 8, v3",
        [
            ("plain, AdamW", {**PLAIN, "optimizer": "adamw"}),
            ("plain, Adafactor", PLAIN),
            ("ours, none", {**OURS, "remat": "none"}),
            ("ours, block", {**OURS, "remat": "block"}),
            (
                "ours, block, accumulation 16",
                {**OURS, "remat": "block", "accumulation": 16},
            ),
        ],
    ),
    "bytes": (
        "GB accessed, no loop: small, microbatch 8, v3",
        [
            ("plain", PLAIN),
            ("ours, none", {**OURS, "remat": "none", "loop": False}),
        ],
    ),
    "microbatch": (
        "microbatch that fits: small, dropout, Adafactor; of plain the largest",
        [
            ("plain, v3", {**PLAIN, "find": True, "size": 20}),
            ("plain, v2", {**PLAIN, "find": True, "tpu": "v2-8"}),
            ("ours, block, v3", {**OURS, "remat": "block", "size": 240}),
            (
                "ours, block, v2",
                {**OURS, "remat": "block", "size": 112, "tpu": "v2-8"},
            ),
        ],
    ),
    "model": (
        "largest model: microbatch, and the peak where it fits",
        [
            ("plain, large, microbatch 1, v3", {**PLAIN, "shape": "large", "size": 1}),
            ("plain, xl, microbatch 1, v3", {**PLAIN, "shape": "xl", "size": 1}),
            (
                "ours, xl, microbatch 2, v3",
                {**OURS, "remat": "block", "shape": "xl", "size": 2},
            ),
            (
                "plain, medium, microbatch 1, v2",
                {**PLAIN, "shape": "medium", "size": 1, "tpu": "v2-8"},
            ),
            (
                "plain, large, microbatch 1, v2",
                {**PLAIN, "shape": "large", "size": 1, "tpu": "v2-8"},
            ),
            (
                "ours, large, microbatch 2, v2",
                {**OURS, "remat": "block", "shape": "large", "size": 2, "tpu": "v2-8"},
            ),
        ],
    ),
}


def plain_step(gpt2: TFGPT2LMHeadModel, optimizer: str) -> Callable:
    """Returns a step of TFGPT2 with Keras' mixed precision, without our forward."""
    rules = {
        "adamw": tf_keras.optimizers.AdamW,
        "adafactor": tf_keras.optimizers.Adafactor,
    }
    rule = rules[optimizer](1e-4, jit_compile=False)
    rule.build(gpt2.trainable_variables)
    add_up = compilation.all_reduce_over(8)

    def step(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        tokens = batch["tokens"]
        with tf.GradientTape() as tape:
            logits = gpt2(tokens, training=True).logits[:, :-1]
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tokens[:, 1:], tf.cast(logits, tf.float32)
            )
            loss = tf.reduce_mean(losses)
        gradients = add_up(tape.gradient(loss, gpt2.trainable_variables))
        rule.apply_gradients(
            zip(gradients, gpt2.trainable_variables, strict=True),
            skip_gradients_aggregation=True,
        )
        return loss

    return step


def our_step(gpt2: TFGPT2LMHeadModel, case: dict[str, Any]) -> Callable:
    config = Config()
    config.optimizer.name = case["optimizer"]
    return assemble(
        gpt2,
        GPT2,
        causal_lm.TASK,
        config,
        10**6,
        accumulation_steps=case.get("accumulation", 1),
        options=Options("bfloat16", case["remat"], compiled=True),
        all_reduce=compilation.all_reduce_over(8),
    ).train_step


def lower(case: dict[str, Any], size: int) -> bytes:
    num_layers, num_heads, channels = SHAPES[case.get("shape", "small")]
    if case["step"] == "plain":
        tf_keras.mixed_precision.set_global_policy("mixed_bfloat16")
    if not case.get("loop", True):
        cross_entropy.CHUNK_TOKENS = size * LENGTH
    gpt2 = weights.build(
        GPT2Config(n_layer=num_layers, n_head=num_heads, n_embd=channels)
    )
    if case["step"] == "plain":
        step = plain_step(gpt2, case["optimizer"])
    else:
        step = our_step(gpt2, case)
    return compilation.lower(
        step, causal_lm.TASK.signature(size * case.get("accumulation", 1), LENGTH)
    )


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Compiles one case, or several to find the largest microbatch."""
    tpu_type = tpu.parse(case.get("tpu", "v3-8"))

    def compile_for(size: int) -> dict[str, Any]:
        hlo = compilation.run_in_process(lower, case=case, size=size)
        compiled = compilation.compile_hlo(hlo, tpu_type)
        print(size, compiled["message"] or compiled["peak_bytes"], file=sys.stderr)
        return compiled

    size = case.get("size", 8)
    if case.get("find"):
        hbm = tpu_type.facts.hbm_bytes
        sizes = range(1, search.LARGEST_MICROBATCH + 1)
        largest = search.largest_that_fits(compile_for, sizes, size, hbm)
        return {"max_microbatch_size": largest}
    return {**compile_for(size), "microbatch_size": size}


def figure(row: str, measured: dict[str, Any]) -> str:
    if "max_microbatch_size" in measured:
        return str(measured["max_microbatch_size"])
    if not measured["fits"]:
        return f"refused: {measured['message'].split('Ran')[-1][:90]}"
    if row == "bytes":
        return f"{measured['bytes_accessed'] / 1e9:.1f}"
    if row in ("microbatch", "model"):
        return (
            f"{measured['microbatch_size']}, peak {measured['peak_bytes'] / 1e9:.2f} GB"
        )
    return f"{measured['temporary_bytes'] / 1e6:,.0f}"


def main(_: list[str]) -> None:
    for row in FLAGS.rows:
        title, cases = ROWS[row]
        print(title, flush=True)
        for label, case in cases:
            measured = measure(case)
            print(f"  {label:36}{figure(row, measured)}", flush=True)


if __name__ == "__main__":
    flags.DEFINE_list("rows", list(ROWS), "which rows of the table")
    app.run(main)
