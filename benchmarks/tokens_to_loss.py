"""What loss does an optimizer reach after how many tokens? On a CPU.

Command   python -m data_pipeline.preprocess --config=configs/wikitext2_cpu.py \
            --input=wiki.train.tokens --validation_input=wiki.valid.tokens \
            --output_dir=data/wikitext2
          python benchmarks/tokens_to_loss.py --data_dir=data/wikitext2 \
            --results=tokens.jsonl --runs=adamw:2e-3:0:300,muon:2e-3:0:300

Trains the model of `configs/wikitext2_cpu.py` from random weights, once for each of
`--runs=OPTIMIZER:LEARNING_RATE:SEED:STEPS,…`. The seed is that of weights and of the
data's order. Each run has its own whole schedule: warmup over 10 % of its steps, cosine
to a tenth. Appends the validation loss of each run to `--results`; a run that is in
there with the same settings is not trained again. `make study` would start a program
for each run, and trace its step anew.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import tensorflow as tf

from configs import wikitext2_cpu
from configs.schema import OptimizerConfig
from tfrecords import manifest as manifests
from tfrecords import reader
from tfrecords.windows import Windows
from trainer.models.architecture import Options
from trainer.models.create import create_model
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule
from trainer.tasks import causal_lm
from trainer.tasks.step import TrainingStep


def train(step, manifest, arguments, run):
    """Trains from random weights; returns the loss of each step, and the seconds."""
    name, rate, seed, num_steps = run
    for variable in step.trained:  # what `initialize` leaves out
        is_gain = variable.name.endswith("gamma:0")
        variable.assign(tf.fill(variable.shape, float(is_gain)))
    weights.initialize(step.model, seed)
    optimizer = OptimizerConfig(
        name=name,
        learning_rate=rate,
        schedule="cosine",
        final_learning_rate=rate / 10,
        beta_2=0.95,
        weight_decay=0.1,
    )
    schedule = Schedule(optimizer, num_steps)
    step.compile(optimizer=factory.create(optimizer, schedule, step.trained))
    train_step = tf.function(step.train_step)
    batches = reader.training_batches(
        arguments.data_dir,
        manifest,
        global_batch_size=arguments.batch_size,
        batch_size=arguments.batch_size,
        start_step=0,
        num_steps=num_steps,
        seed=seed,
    )
    start = time.monotonic()
    losses = [float(train_step(batch)["loss"]) for batch in batches]
    return losses, time.monotonic() - start


def validation_loss(step, manifest, arguments):
    """Returns the mean loss over the first windows of the validation split."""
    windows = Windows(
        arguments.data_dir,
        manifest,
        split="validation",
        context_length=manifest.sequence_length,
        stride=manifest.sequence_length,
    )
    size = arguments.batch_size
    batches = windows.batches(global_batch_size=size, batch_size=size)
    test_step = tf.function(step.test_step)
    sums = [test_step(b) for b in batches.take(arguments.validation_windows // size)]
    tokens = sum(float(s["token_count"]) for s in sums)
    return sum(float(s["loss_sum"]) for s in sums) / tokens


def finished(path):
    """Returns the settings and the run of each line of a file of results."""
    if not os.path.exists(path):
        return []
    with open(path) as lines:
        rows = map(json.loads, lines)
        return [(row["settings"], tuple(row["run"])) for row in rows]


def parse(text):
    """Returns optimizer, learning rate, seed and number of steps of a run."""
    name, rate, seed, num_steps = text.split(":")
    return name, float(rate), int(seed), int(num_steps)


def main():
    """Trains the runs that are not finished."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--runs", required=True)
    parser.add_argument("--n_layer", type=int, default=4)
    parser.add_argument("--n_embd", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--validation_windows", type=int, default=160)
    arguments = parser.parse_args()
    manifest = manifests.load(arguments.data_dir)
    shape = wikitext2_cpu.get_config().model
    shape.n_layer, shape.n_embd = arguments.n_layer, arguments.n_embd
    step = TrainingStep(
        create_model(shape, manifest, 0),
        GPT2,
        causal_lm.TASK,
        options=Options("float32"),
        clip_norm=1.0,
        compile_local=True,
    )
    names = ("n_layer", "n_embd", "batch_size", "validation_windows")
    settings = {name: getattr(arguments, name) for name in names}
    settings["dataset"] = manifest.fingerprint
    for run in map(parse, arguments.runs.split(",")):
        if (settings, run) in finished(arguments.results):
            continue
        losses, seconds = train(step, manifest, arguments, run)
        tokens = run[-1] * arguments.batch_size * manifest.sequence_length
        result = {
            "settings": settings,
            "run": run,
            "tokens": tokens,
            "validation_loss": validation_loss(step, manifest, arguments),
            "training_loss": sum(losses[-10:]) / len(losses[-10:]),
            "seconds": seconds,
        }
        with open(arguments.results, "a") as file:
            print(json.dumps(result), file=file)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
