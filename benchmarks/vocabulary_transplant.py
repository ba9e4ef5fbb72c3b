"""What does a model lose when it takes another tokenizer's vocabulary?

Command   python -m benchmarks.vocabulary_transplant --text=tinyshakespeare.txt

Trains a small model with a byte-level BPE of 4,000 tokens, and exports it. Then makes
datasets of the same text with other tokenizers, and scores their validation splits
before any training: with rows by `model.vocabulary=transplant`, with the mean of the
old rows for each token, and with random rows, as a new embedding has. Prints nats a
byte, so that tokenizers can be compared.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import tensorflow as tf
import tf_keras

from configs.schema import ModelConfig
from tfrecords import manifest as manifests
from tfrecords import schema
from trainer.models import create
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

ROOT = pathlib.Path(__file__).parent.parent
OTHERS = {
    "byte-level BPE 4000, two new special tokens": [
        "--config.data.start_token=<|a speech|>",
        "--config.data.end_token=<|the end|>",
    ],
    "byte-level BPE 2000": ["--config.data.vocab_size=2000"],
    "Unigram 4000": ["--config.data.tokenizer_model=unigram"],
    "WordPiece 4000": ["--config.data.tokenizer_model=wordpiece"],
}


def run(module: str, *arguments: str) -> None:
    """Runs a program, which must not fail."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(process.stderr)


def preprocess(text: str, data: str, tokenizer: str, *arguments: str) -> None:
    """Makes a dataset of the text."""
    run(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        f"--config.data.tokenizer={tokenizer}",
        "--config.data.vocab_size=4000",
        "--config.data.document=paragraph",
        "--config.data.allow_lossy_tokenizer",
        f"--input={text}",
        f"--output_dir={data}",
        *arguments,
    )


def nats_per_byte(model: tf_keras.Model, data: str) -> float:
    """Returns the loss of the validation split, for each byte of its text."""
    manifest = manifests.load(data)
    split = manifest.split("validation")
    total = 0.0
    for shard in split.shards:
        for batch in tf.data.TFRecordDataset(f"{data}/{shard.name}").batch(16):
            record = schema.parse(
                batch, sequence_length=manifest.sequence_length, dtype=manifest.dtype
            )
            tokens = tf.cast(record["tokens"], tf.int32)
            losses = tf.keras.losses.sparse_categorical_crossentropy(
                tokens[:, 1:], model(tokens[:, :-1]).logits, from_logits=True
            )
            places = tf.range(1, tokens.shape[1])[None] < record["length"][:, None]
            total += float(tf.reduce_sum(tf.where(places, losses, 0.0)))
    return total / split.bytes


def main() -> None:
    """Prints a line for each tokenizer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--text", required=True)
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        preprocess(arguments.text, f"{folder}/data", "train")
        run(
            "trainer.train",
            "--config=configs/quickstart.py",
            f"--config.training.num_steps={arguments.steps}",
            "--config.training.global_batch_size=16",
            "--config.training.microbatch_size=8",
            "--config.training.evaluation_interval=0",
            "--config.training.checkpoint_interval=0",
            "--config.tracking.sample_interval=0",
            f"--data_dir={folder}/data",
            f"--workdir={folder}/run",
        )
        old = f"{folder}/old"
        run("trainer.export", f"--workdir={folder}/run", f"--output_dir={old}")
        trained = GPT2.load(old)
        print(f"before: {nats_per_byte(trained, f'{folder}/data'):.3f} nats a byte")
        for number, (name, settings) in enumerate(OTHERS.items()):
            data = f"{folder}/{number}"
            same = "special" in name
            preprocess(arguments.text, data, old if same else "train", *settings)
            print(f"{name}: {compare(trained, old, data, keep=same)}", flush=True)


def compare(trained: tf_keras.Model, old: str, data: str, *, keep: bool) -> str:
    """Scores the ways in which a model takes the vocabulary of a dataset.

    Args:
      trained: the model.
      old: its folder.
      data: folder of the dataset.
      keep: whether all old rows stay, and the ways are those of new rows.
    """
    manifest = manifests.load(data)
    config = ModelConfig(initial_checkpoint=old, vocabulary="transplant")
    model = create.create_model(config, manifest, 0, f"{data}/tokenizer")
    scores = {"transplant": nats_per_byte(model, data)}
    kept = trained.config.vocab_size if keep else 0
    rows = [[index] for index in range(kept)]
    model = GPT2.resize_vocabulary(
        trained, [*rows, *[[]] * (manifest.vocabulary_size - kept)]
    )
    scores["mean"] = nats_per_byte(model, data)
    table = model.transformer.wte.embeddings
    mean_rows = table.numpy()
    random = np.random.default_rng(0).normal(0, 0.02, mean_rows.shape)
    table.assign(np.concatenate([mean_rows[:kept], random[kept:]]))
    scores["random"] = nats_per_byte(model, data)
    return ", ".join(f"{way} {score:.3f}" for way, score in scores.items())


if __name__ == "__main__":
    main()
