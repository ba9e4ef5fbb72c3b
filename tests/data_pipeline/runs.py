"""Runs of preprocessing for tests, in this process or in worker processes."""

import contextlib
import hashlib
import pathlib

import tokenizers

from configs.schema import Config, DataConfig
from data_pipeline import pipeline, runners
from data_pipeline.job import plan_job
from tfrecords import manifest

LENGTH = 64


SETTINGS = {
    "tokenizer": "train",
    "vocab_size": 500,
    "sequence_length": LENGTH,
    "num_shards": 3,
    "seed": 7,
}


SMALL_CHUNKS = {"min_chunk_bytes": 40_000}


def in_process(function, items):
    return enumerate(map(function, items))


def run(
    corpus,
    output_dir,
    num_workers=0,
    *,
    runner=in_process,
    overwrite=False,
    min_chunk_bytes=1 << 20,
    **fields,
) -> manifest.Manifest:
    """Preprocesses in this process, or with that many worker processes."""
    config = Config(data=DataConfig(**{"input": str(corpus), **SETTINGS, **fields}))
    job = plan_job(config, min_chunk_bytes=min_chunk_bytes)
    here = contextlib.nullcontext(runner)
    with runners.local(num_workers) if num_workers else here as used:
        return pipeline.preprocess(job, str(output_dir), used, overwrite=overwrite)


def load_encoder(folder: pathlib.Path) -> tokenizers.Tokenizer:
    encoder = tokenizers.Tokenizer.from_file(str(folder / "tokenizer/tokenizer.json"))
    encoder.encode_special_tokens = True
    return encoder


def hashes(folder: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def command(corpus, output_dir, *arguments):
    return [
        "--config=configs/quickstart.py",
        f"--input={corpus}",
        f"--output_dir={output_dir}",
        "--config.data.vocab_size=500",
        "--num_workers=1",
        *arguments,
    ]
