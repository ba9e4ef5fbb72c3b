"""Turns text into a dataset: `python -m data_pipeline.preprocess --config=… …`.

1. Plan: find the input, cut it into chunks by size.
2. Load the tokenizer, or train it on the training documents.
3. First pass: tokenize each chunk by itself (`chunks`).
4. Sum up the counts: now every record's place in the stream of tokens is known.
5. Second pass: write each shard from the ranges that it needs (`shards`).
6. The manifest, last. A folder without it is no dataset.

The result is a pure function of the input's bytes, the tokenizer and `config.data`.
What a stopped run has finished stays in `OUTPUT_DIR/work-…` and is not done again.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from configs import cli
from configs.schema import Config, ConfigError, DataConfig, validate
from data_pipeline import chunks, engine, packing, shards, sources, tokenizer
from data_pipeline.detokenizer import detokenize
from tfrecords import manifest, order, schema

_CONFIG = cli.define_config()
_OUTPUT_DIR = flags.DEFINE_string("output_dir", "", "folder of the dataset")
_INPUT = flags.DEFINE_string("input", "", "stands for --config.data.input")
_VALIDATION_INPUT = flags.DEFINE_string(
    "validation_input", "", "stands for --config.data.validation_input"
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 0, "processes; 0: one for each CPU", lower_bound=0
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace a dataset that is there")
_JSON = flags.DEFINE_bool("json", False, "print the result as one JSON object")

# A chunk is a 64th of the input, within these bounds.
_MIN_CHUNK_BYTES = 1 << 20
_MAX_CHUNK_BYTES = 16 << 20
_SHARD_BYTES = 128 << 20
_MIN_AUTOMATIC_SHARDS = 8
_LARGE_CORPUS_BYTES = 100_000_000


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be made of what: all that the bytes of the dataset depend on."""

    config: DataConfig
    n_positions: int
    train_files: list[sources.InputFile]
    validation_files: list[sources.InputFile]
    validation_fraction: float  # of the documents of `train_files`

    @property
    def chunk_bytes(self) -> int:
        size = sum(f.num_bytes for f in self.train_files + self.validation_files)
        return min(max(size // 64, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)

    def pieces(self, files: list[sources.InputFile]) -> Iterator[sources.Piece]:
        for file in files:
            yield from sources.cut(file, self.config, self.chunk_bytes)

    def description(self) -> dict[str, Any]:
        """What the manifest says of the job; paths do not count, contents do."""
        config = dataclasses.asdict(self.config)
        del config["input"], config["validation_input"]
        config["validation_fraction"] = self.validation_fraction
        config["tokenizer"] = os.path.basename(os.path.normpath(self.config.tokenizer))
        names = {"input": self.train_files, "validation_input": self.validation_files}
        for name, files in names.items():
            config[name] = [
                [os.path.basename(file.path), file.num_bytes, file.sha256]
                for file in files
            ]
        return config

    def fingerprint(self) -> str:
        values = [schema.FORMAT_VERSION, self.n_positions, self.description()]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def plan_job(config: Config) -> Job:
    """Finds the input and settles what the config leaves open."""
    data = config.data
    train_files = sources.find_files(data.input)
    if data.validation_input:
        validation_files = sources.find_files(data.validation_input)
        fraction = 0.0
    else:
        validation_files = []
        size = sum(file.num_bytes for file in train_files)
        fraction = 0.01 if size >= _LARGE_CORPUS_BYTES else 0.1
        if data.validation_fraction is not None:
            fraction = data.validation_fraction
    return Job(data, config.model.n_positions, train_files, validation_files, fraction)


def preprocess(job: Job, output_dir: str, num_workers: int) -> manifest.Manifest:
    """Writes the dataset; see the module's docstring.

    Raises:
      InputError: the input cannot be read or is shorter than one sequence.
    """
    work_dir = os.path.join(output_dir, f"work-{job.fingerprint()[:16]}")
    _remove_other_work(output_dir, keep=work_dir)
    os.makedirs(work_dir, exist_ok=True)

    tokenizer_folder = os.path.join(output_dir, manifest.TOKENIZER_FOLDER)
    model = tokenizer.load_or_train(
        job.config, job.n_positions, _training_documents(job)
    )
    model.save_pretrained(tokenizer_folder)
    dtype = schema.token_dtype(len(model))

    work = _plan_chunks(job, work_dir, tokenizer_folder, dtype, model.eos_token_id)
    counts = _tokenize(work, num_workers)
    _check_counts(counts, job)

    items = {
        split: _plan_shards(split, work, counts, job.config, output_dir, work_dir)
        for split in ("train", "validation")
        if _total(counts, split).tokens
    }
    written = _write_shards([i for item in items.values() for i in item], num_workers)
    result = manifest.Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=job.config.sequence_length,
        token_dtype=dtype.name,
        vocabulary_size=len(model),
        end_of_text_id=model.eos_token_id,
        tokenizer_fingerprint=str(manifest.tokenizer_fingerprint(tokenizer_folder)),
        mode=job.config.mode,
        config=job.description(),
        splits={
            split: manifest.Split(
                **dataclasses.asdict(_total(counts, split)),
                shards=tuple(written[item.path] for item in items[split]),
            )
            for split in items
        },
    )
    path = os.path.join(output_dir, manifest.FILE_NAME)
    with open(path + ".partial", "w") as stream:
        stream.write(manifest.to_json(result))
    os.replace(path + ".partial", path)
    shutil.rmtree(work_dir)
    return result


def _training_documents(job: Job) -> Iterator[str]:
    for piece in job.pieces(job.train_files):
        for document in sources.read_documents(piece, job.config):
            if chunks.split_of(document, job.validation_fraction) == "train":
                yield detokenize(document, job.config.detokenizer)


def _plan_chunks(
    job: Job, work_dir: str, tokenizer_folder: str, dtype: np.dtype, end_id: int
) -> list[chunks.Chunk]:
    groups = [
        (pieces, fraction)
        for files, fraction in (
            (job.train_files, job.validation_fraction),
            (job.validation_files, 1.0),
        )
        for pieces in chunks.group(list(job.pieces(files)), job.chunk_bytes)
    ]
    return [
        chunks.Chunk(
            path=os.path.join(work_dir, f"chunk-{index:05d}"),
            pieces=pieces,
            validation_fraction=fraction,
            config=job.config,
            tokenizer_folder=tokenizer_folder,
            token_dtype=dtype.str,
            end_of_text_id=end_id,
        )
        for index, (pieces, fraction) in enumerate(groups)
    ]


def _tokenize(
    work: Sequence[chunks.Chunk], num_workers: int
) -> list[dict[str, chunks.Counts]]:
    """Runs the first pass; returns the counts of each chunk, in the chunks' order."""
    found = {}
    num_tokens = 0
    with _progress("tokenize", sum(chunk.num_bytes for chunk in work), "B") as bar:
        for chunk, counts in engine.run(chunks.tokenize, work, num_workers):
            found[chunk.path] = counts
            num_tokens += sum(count.tokens for count in counts.values())
            bar.update(chunk.num_bytes)
            seconds = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{num_tokens / seconds:,.0f} tokens/s")
    return [found[chunk.path] for chunk in work]


def _write_shards(
    items: Sequence[shards.ShardItem], num_workers: int
) -> dict[str, manifest.Shard]:
    """Runs the second pass; returns the manifest's entries by path."""
    written = {}
    total = sum(item.num_tokens for item in items)
    with _progress("write", total, "token") as bar:
        for item, shard in engine.run(shards.write, items, num_workers):
            written[item.path] = shard
            bar.update(item.num_tokens)
    return written


def _progress(description: str, total: int, unit: str) -> tqdm:
    return tqdm(
        desc=description, total=total, unit=unit, unit_scale=True, file=sys.stderr
    )


def _total(counts: list[dict[str, chunks.Counts]], split: str) -> chunks.Counts:
    fields = [dataclasses.astuple(count[split]) for count in counts]
    return chunks.Counts(*(sum(column) for column in zip(*fields, strict=True)))


def _check_counts(counts: list[dict[str, chunks.Counts]], job: Job) -> None:
    train, validation = (_total(counts, split) for split in ("train", "validation"))
    length = job.config.sequence_length
    if not train.documents + validation.documents:
        raise sources.InputError(
            "The input must hold text. It has no document but white space."
        )
    if (job.validation_fraction or job.validation_files) and not validation.documents:
        raise sources.InputError(
            f"The validation split is empty: {train.documents} documents were split "
            "by their hashes, and none was chosen. Give --validation_input, or cut "
            "plain text into more documents with --config.data.document=paragraph, or "
            "raise --config.data.validation_fraction (0: train without validation)."
        )
    if train.tokens < length:
        raise sources.InputError(
            f"The training split must hold at least one sequence of {length} tokens. "
            f"It has {train.tokens}. Add text, or lower "
            "--config.data.sequence_length."
        )


def _plan_shards(
    split: str,
    work: Sequence[chunks.Chunk],
    counts: list[dict[str, chunks.Counts]],
    config: DataConfig,
    output_dir: str,
    work_dir: str,
) -> list[shards.ShardItem]:
    token_counts = tuple(count[split].tokens for count in counts)
    num_records = packing.num_records(sum(token_counts), config.sequence_length)
    dtype = np.dtype(work[0].token_dtype)
    size = num_records * schema.frame_bytes(config.sequence_length, dtype)
    automatic = max(-(-size // _SHARD_BYTES), _MIN_AUTOMATIC_SHARDS)
    num_shards = min(config.num_shards or automatic, num_records)
    if split == "train" and num_shards < config.num_shards:
        raise ConfigError(
            "`data.num_shards` must not exceed the number of training records "
            f"({num_records}). Received: {config.num_shards}."
        )
    # Validation stays in the order of the text; training is shuffled once, here.
    order_ = packing.stored_order(
        num_records, seed=config.seed, shuffle=split == "train"
    )
    ends = np.cumsum(order.shard_sizes(num_records, num_shards))
    items = []
    for index, records in enumerate(np.split(order_, ends[:-1])):
        name = manifest.shard_name(split, index, num_shards)
        item = shards.ShardItem(
            path=os.path.join(output_dir, name),
            done_path=os.path.join(work_dir, f"{name}.json"),
            token_files=tuple(chunks.token_path(chunk, split) for chunk in work),
            token_counts=token_counts,
            records=records,
            sequence_length=config.sequence_length,
            token_dtype=work[0].token_dtype,
        )
        items.append(item)
    return items


def _remove_other_work(output_dir: str, keep: str) -> None:
    """Removes the shards and leftovers of any other job."""
    if not os.path.isdir(output_dir) or os.path.isdir(keep):
        return
    for name in os.listdir(output_dir):
        path = os.path.join(output_dir, name)
        if name.startswith("work-"):
            shutil.rmtree(path)
        elif name == manifest.FILE_NAME or ".tfrecord" in name:
            os.remove(path)


def _is_finished(job: Job, output_dir: str) -> bool:
    """Tells whether the folder already holds this job's dataset.

    Raises:
      ConfigError: it holds another one.
    """
    if not os.path.exists(os.path.join(output_dir, manifest.FILE_NAME)):
        return False
    found = manifest.load(output_dir).config
    wanted = json.loads(json.dumps(job.description()))
    different = sorted(key for key in wanted if wanted[key] != found.get(key))
    if different:
        raise ConfigError(
            f"{output_dir} holds a dataset made with other "
            f"{', '.join(different)}. Give another --output_dir, or --overwrite."
        )
    return True


def _print_result(result: manifest.Manifest) -> None:
    if _JSON.value:
        print(manifest.to_json(result), end="")
        return
    columns = "{:12}{:>12}{:>14}{:>14}{:>12}{:>8}"
    print(columns.format("split", "documents", "words", "tokens", "records", "shards"))
    for name, split in result.splits.items():
        numbers = [split.documents, split.words, split.tokens, split.num_records]
        cells = [f"{number:,}" for number in (*numbers, len(split.shards))]
        print(columns.format(name, *cells))
    print(f"fingerprint {result.fingerprint[:16]}")


def main() -> None:
    config = _CONFIG.value
    config.data.input = _INPUT.value or config.data.input
    config.data.validation_input = (
        _VALIDATION_INPUT.value or config.data.validation_input
    )
    validate(config)
    output_dir = _OUTPUT_DIR.value
    if not output_dir or "://" in output_dir:
        raise ConfigError(
            "`--output_dir` must be a folder on this machine; copy it to a bucket "
            f"afterwards. Received: {output_dir!r}."
        )
    job = plan_job(config)
    if not _OVERWRITE.value and _is_finished(job, output_dir):
        print(f"{output_dir} holds this dataset already.", file=sys.stderr)
        result = manifest.load(output_dir)
    else:
        if os.path.exists(os.path.join(output_dir, manifest.FILE_NAME)):
            os.remove(os.path.join(output_dir, manifest.FILE_NAME))
        result = preprocess(job, output_dir, _NUM_WORKERS.value or os.cpu_count() or 1)
    _print_result(result)


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
