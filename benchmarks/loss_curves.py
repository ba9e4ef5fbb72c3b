"""Does the training forward learn what plain TFGPT2 learns? Loss curves, side by side.

Command   python -m data_pipeline.preprocess --config=configs/wikitext2_cpu.py \
            --input=wiki.train.tokens --validation_input=wiki.valid.tokens \
            --config.data.sequence_length=128 --output_dir=data/wikitext2_128
          python benchmarks/loss_curves.py --data_dir=data/wikitext2_128

Trains the same weights on the same batches by transformers' forward, and by ours with
every recomputation policy and in the layouts of TPUs and CPUs, in float32 and in
bfloat16, without dropout. Prints each one's distance from plain float32.
"""

import argparse
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tensorflow as tf
import tf_keras
from transformers import GPT2Config

from configs.schema import Config
from tfrecords import manifest as manifests
from tfrecords import reader
from trainer.models.architecture import Options
from trainer.models.gpt2 import forward, weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers import cross_entropy
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule
from trainer.planning.hardware import REMAT_POLICIES
from trainer.tasks import causal_lm
from trainer.tasks.step import TrainingStep

BATCH_SIZE = 8
# Several blocks of queries, and several chunks of tokens, though the records are short.
forward.QUERY_BLOCK = 32
cross_entropy.CHUNK_TOKENS = 256


class PlainStep(TrainingStep):
    """The same step around transformers' own forward."""

    def local_gradients(self, batch, keys):
        tokens, length = batch["tokens"], batch["length"]
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                tokens[:, 1:], tf.cast(self.model(tokens).logits[:, :-1], tf.float32)
            )
            real = tf.range(1, tokens.shape[1])[None] < length[:, None]
            weights = tf.cast(real, tf.float32)
            loss = tf.reduce_sum(losses * weights)
        gradients = tape.gradient(loss, self.model.trainable_variables)
        dense = [tf.convert_to_tensor(gradient) for gradient in gradients]
        return loss, tf.reduce_sum(weights), dense


def losses(arguments, manifest, step_class, options):
    """Trains anew and returns the loss of each step."""
    is_mixed = step_class is PlainStep and options.precision == "bfloat16"
    tf_keras.mixed_precision.set_global_policy(
        "mixed_bfloat16" if is_mixed else "float32"
    )
    config = Config()
    # Adafactor and AdamW divide by the gradient's size, which makes rounding as large
    # as anything: after 40 steps two equal forwards were 1e-3 apart, by SGD 1e-6.
    config.optimizer.name = "sgd"
    config.optimizer.beta_1 = 0.9
    config.optimizer.learning_rate = 0.1
    gpt2 = weights.build(
        GPT2Config(
            vocab_size=manifest.vocabulary_size,
            n_positions=manifest.sequence_length,
            n_layer=2,
            n_head=2,
            n_embd=64,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )
    weights.initialize(gpt2, seed=0)
    training_step = step_class(
        gpt2, GPT2, causal_lm.TASK, options=options, compile_local=options.compiled
    )
    schedule = Schedule(config.optimizer, arguments.steps)
    variables = gpt2.trainable_variables
    training_step.compile(
        optimizer=factory.create(config.optimizer, schedule, variables)
    )
    batches = reader.training_batches(
        arguments.data_dir,
        manifest,
        global_batch_size=BATCH_SIZE,
        batch_size=BATCH_SIZE,
        start_step=0,
        num_steps=arguments.steps,
        seed=0,
    )
    step = tf.function(training_step.train_step)
    return np.array([float(step(batch)["loss"]) for batch in batches])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    manifest = manifests.load(arguments.data_dir)

    plain = losses(arguments, manifest, PlainStep, Options("float32", compiled=True))
    curves = {
        "plain TFGPT2, float32": plain,
        "plain TFGPT2, bfloat16": losses(
            arguments, manifest, PlainStep, Options("bfloat16")
        ),
    }
    # A TPU's form is compiled by XLA, `on_cpu` is a CPU's. XLA has no fast bfloat16
    # product there: every policy of a TPU's form runs without it, and one with it.
    ways = [
        *(Options("float32", remat, compiled=True) for remat in REMAT_POLICIES),
        *(Options("bfloat16", remat) for remat in REMAT_POLICIES),
        *(Options(precision, on_cpu=True) for precision in ("float32", "bfloat16")),
        Options("bfloat16", compiled=True),
    ]
    for way in ways:
        form = ", XLA" * way.compiled + ", CPU" * way.on_cpu
        name = f"ours, {way.precision}, {way.remat}{form}"
        curves[name] = losses(arguments, manifest, TrainingStep, way)
    print(f"{'loss of step':30}{1:>9}{arguments.steps:>9}   largest distance, mean")
    for name, curve in curves.items():
        distance = np.abs(curve - plain)
        print(
            f"{name:30}{curve[0]:9.4f}{curve[-1]:9.4f}   "
            f"{distance.max():.2e}  {distance.mean():.2e}"
        )


if __name__ == "__main__":
    main()
