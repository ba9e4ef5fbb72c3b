"""What several test files need: CPU devices, tiny datasets and models, real text."""

import fcntl
import importlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# XLA's own passes stay; LLVM's would take half of the time of each compilation.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# What `make test DEV=...` passes to another `make`.
os.environ.pop("MAKEFLAGS", None)
os.environ.pop("MAKELEVEL", None)
os.environ.pop("DEV", None)

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from transformers import GPT2Config

from configs.schema import Config, DataConfig, ModelConfig, TrainingConfig
from tests import object_store, programs
from tests.fake_tpu import environment
from tfrecords import fingerprints, manifest, order, schema, writer
from tfrecords.storage import gcs
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.tasks import causal_lm
from trainer.tasks.step import TrainingStep

ROOT = pathlib.Path(__file__).parent.parent
SHARED_DATA = ROOT.parent / "shared" / "data"
VOCABULARY_SIZE = 97

# Before TensorFlow starts: strategies of 1 to 8 replicas in one process.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 8,
)


def shared(path: str) -> str:
    """A file of shared/data; skips the test where it is absent."""
    if not (SHARED_DATA / path).exists():
        pytest.skip(f"shared/data/{path} is not on this machine")
    return str(SHARED_DATA / path)


def run_program(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs `python -m module` as a user would, in a process of its own.

    `programs.run` starts sooner: it imports TensorFlow once for all.
    """
    environment = os.environ | {"USE_TORCH": "0"}  # as the Makefile does
    del environment["XLA_FLAGS"]
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1200,
        env=environment,
    )


def assert_refused(process: subprocess.CompletedProcess, *phrases: str) -> None:
    """Asserts that a program ended with one message on a user's mistake, no trace."""
    assert process.returncode == 2, process.stderr
    before, message = re.split("^error: ", process.stderr, flags=re.MULTILINE)
    assert "Traceback" not in before
    for phrase in phrases:
        assert phrase in message


def _tokenizer(size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE of `size` tokens: end-of-text, bytes, and then made-up words."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = [f"word{index}" for index in range(size)]
    tokens = ["<|endoftext|>", *letters, *words][:size]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def write_dataset(
    folder: pathlib.Path,
    *,
    train_tokens: np.ndarray,
    validation_tokens: np.ndarray,
    sequence_length: int,
    num_shards: int = 3,
    vocabulary_size: int = VOCABULARY_SIZE,
) -> manifest.Manifest:
    """Writes tokens as a dataset, in stored order; the last record is padded."""
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir(parents=True)
    _tokenizer(vocabulary_size).save(str(tokenizer / "tokenizer.json"))
    dtype = schema.token_dtype(vocabulary_size)
    splits = {}
    for name, tokens in (("train", train_tokens), ("validation", validation_tokens)):
        records = []
        for start in range(0, len(tokens), sequence_length):
            row = tokens[start : start + sequence_length].astype(dtype)
            length = None if len(row) == sequence_length else len(row)
            row = np.pad(row, (0, sequence_length - len(row)))
            records.append(schema.serialize(row, length))
        shards, begin = [], 0
        for index, size in enumerate(order.shard_sizes(len(records), num_shards)):
            path = str(folder / manifest.shard_name(name, index, num_shards))
            shards.append(writer.write_shard(path, records[begin : begin + size]))
            begin += size
        splits[name] = manifest.Split(
            documents=1,
            words=len(tokens) // 2,
            bytes=len(tokens) * 3,
            tokens=len(tokens),
            stride=sequence_length,
            shards=tuple(shards),
        )
    written = manifest.Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=sequence_length,
        token_dtype=dtype.name,
        vocabulary_size=vocabulary_size,
        end_of_text_id=0,
        pad_id=0,
        padding_side="right",
        tokenizer_engine="",
        added_tokens=(),
        tokenizer_fingerprint=str(fingerprints.of_tokenizer(str(tokenizer))),
        mode="packed",
        config={},
        splits=splits,
    )
    (folder / manifest.FILE_NAME).write_text(manifest.to_json(written))
    return written


# The quickstart, cut down for tests that need just any run.
SMALL = (
    "--config=configs/quickstart.py",
    "--config.training.num_steps=6",
    "--config.training.evaluation_interval=2",
    "--config.training.checkpoint_interval=2",
    "--config.training.steps_per_execution=2",
    "--config.model.n_embd=32",
    "--config.model.n_layer=1",
    "--config.tracking.sample_interval=0",
)


def _train_small(folder: pathlib.Path) -> None:
    """Makes `folder/data`, `folder/run`, and `folder/result.json`: what it printed."""
    line = "The quick brown fox jumps over the lazy dog. {} times it did so.\n\n"
    (folder / "text.txt").write_text("".join(line.format(n) for n in range(2000)))
    preprocess = (
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        "--config.data.vocab_size=400",
        "--config.data.document=paragraph",
        f"--input={folder / 'text.txt'}",
        f"--output_dir={folder / 'data'}",
        "--num_workers=1",
    )
    train = (
        "trainer.train",
        *SMALL,
        f"--data_dir={folder / 'data'}",
        f"--workdir={folder / 'run'}",
        "--num_virtual_devices=2",
        "--json",
    )
    for command in (preprocess, train):
        process = programs.run(*command)
        assert process.returncode == 0, process.stderr
    (folder / "result.json").write_text(process.stdout)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> pathlib.Path:
    """A folder with a dataset, `data`, and a run on it, `run`: copy it to write there.

    Made once for all workers.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "small"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "result.json").exists():
            _train_small(folder)
    return folder


@pytest.fixture(scope="session")
def tpu_environment(
    tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> environment.TpuEnvironment:
    """The environment of `make install-tpu`; made once for all workers.

    TPU_ENVIRONMENT names a folder that keeps it for the next time.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root if worker_id == "master" else root.parent) / "tpu"
    folder = pathlib.Path(os.environ.get("TPU_ENVIRONMENT", folder))
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return environment.install(folder)


@pytest.fixture(autouse=True)
def kill_leftover_programs() -> Iterator[None]:
    yield
    programs.kill_all()


@pytest.fixture(scope="module")
def store() -> Iterator[Any]:
    """A real object-store server with the bucket "corpus"; its memory only grows."""
    importlib.import_module("tests.short_waits")
    with object_store.serving() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", server.url)
        gcs.client.cache_clear()
        gcs.client().create_bucket("corpus", project="tests")
        yield server
    gcs.client.cache_clear()


@pytest.fixture
def bucket(store: Any) -> str:
    """The bucket, which makes no faults unless the test says so."""
    store.faults, store.num_faults, store.requests = [], 0, []
    return "gs://corpus"


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    values = np.random.default_rng(0).integers(0, VOCABULARY_SIZE, 29 * 8 + 3)
    values.flags.writeable = False
    return values


@pytest.fixture
def dataset(tmp_path, tokens):
    """(folder, manifest): 30 records of 8 in 3 shards, the last with 3 real tokens."""
    folder = tmp_path / "dataset"
    written = write_dataset(
        folder,
        train_tokens=tokens,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    return folder, written


def tiny_model(seed: int = 0, **overrides):
    """A GPT-2 whose every weight is random, biases and layer norms included."""
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 16}
    shape |= {"vocab_size": VOCABULARY_SIZE, **overrides}
    gpt2 = weights.build(GPT2Config(**shape))
    weights.initialize(gpt2, seed)
    for index, variable in enumerate(gpt2.trainable_variables):
        noise = tf.random.stateless_normal(variable.shape, [seed, index], stddev=0.1)
        variable.assign_add(noise)
    return gpt2


def training_step(model, **settings) -> TrainingStep:
    """The step that trains a GPT-2 as a causal language model."""
    return TrainingStep(model, GPT2, causal_lm.TASK, **settings)


def summed_loss(model, tokens, length, *settings):
    """The causal language model's loss of a batch, and its number of tokens."""
    batch = {"tokens": tokens, "length": length}
    return causal_lm.summed_loss(GPT2, model, batch, *settings)


def tiny_config(**training) -> Config:
    return Config(
        data=DataConfig(sequence_length=8),
        model=ModelConfig(n_layer=1, n_head=2, n_embd=16, n_positions=16),
        training=TrainingConfig(
            **{
                "global_batch_size": 4,
                "microbatch_size": 2,
                "precision": "float32",
                "steps_per_execution": 1,
                **training,
            }
        ),
    )
