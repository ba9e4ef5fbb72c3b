"""Turns text into a dataset: `python -m data_pipeline.preprocess --config=… …`.

1. Plan: find the input, cut it into chunks by size.
2. Load the tokenizer, or train it on the training documents.
3. First pass: tokenize each chunk by itself (`chunks`).
4. Sum up the counts: now every record's place in the stream of tokens is known.
5. Second pass: write each shard from the ranges that it needs (`shards`).
6. The manifest, last. A folder without it is no dataset.

The result is a pure function of the input's bytes, the tokenizer and `config.data`.
What a stopped run has finished stays in `OUTPUT_DIR/.unfinished` and is not done again.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from configs import cli
from configs.schema import ConfigError, DataConfig, validate
from data_pipeline import chunks, engine, packing, shards, sources, tokenizer
from data_pipeline import job as jobs
from tfrecords import manifest, order, schema

FLAGS = flags.FLAGS

# What a run has finished, until the dataset is whole.
_WORK_FOLDER = ".unfinished"
_SHARD_BYTES = 128 << 20
_MIN_AUTOMATIC_SHARDS = 8


def preprocess(
    job: jobs.Job, output_dir: str, num_workers: int, *, overwrite: bool = False
) -> manifest.Manifest:
    """Writes the dataset; see the module's docstring.

    Raises:
      InputError: the input cannot be read or is shorter than one sequence.
      ConfigError: a run of another job was stopped here, and not `overwrite`.
    """
    _open_work(job, output_dir, overwrite=overwrite)
    work_dir = os.path.join(output_dir, _WORK_FOLDER)
    tokenizer_folder = os.path.join(work_dir, manifest.TOKENIZER_FOLDER)
    model = tokenizer.load_or_train(job, tokenizer_folder)
    dtype = schema.token_dtype(len(model))

    work = _plan_chunks(job, work_dir, tokenizer_folder, dtype, model.eos_token_id)
    counts = _tokenize(work, num_workers)
    _check_counts(counts, job)

    items = {
        split: _plan_shards(split, work, counts, job.config, work_dir)
        for split in ("train", "validation")
        if _total(counts, split).tokens
    }
    all_items = [item for split_items in items.values() for item in split_items]
    written = _write_shards(all_items, num_workers)
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
                shards=tuple(written[item.name] for item in items[split]),
            )
            for split in items
        },
    )
    _publish(result, all_items, output_dir)
    return result


def _plan_chunks(
    job: jobs.Job, work_dir: str, tokenizer_folder: str, dtype: np.dtype, end_id: int
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
    """Runs the second pass; returns the manifest's entries by name."""
    written = {}
    total = sum(item.num_tokens for item in items)
    with _progress("write", total, "token") as bar:
        for item, shard in engine.run(shards.write, items, num_workers):
            written[item.name] = shard
            bar.update(item.num_tokens)
    return written


def _progress(description: str, total: int, unit: str) -> tqdm:
    return tqdm(
        desc=description, total=total, unit=unit, unit_scale=True, file=sys.stderr
    )


def _total(counts: list[dict[str, chunks.Counts]], split: str) -> chunks.Counts:
    fields = [dataclasses.astuple(count[split]) for count in counts]
    return chunks.Counts(*(sum(column) for column in zip(*fields, strict=True)))


def _check_counts(counts: list[dict[str, chunks.Counts]], job: jobs.Job) -> None:
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
        item = shards.ShardItem(
            name=manifest.shard_name(split, index, num_shards),
            work_dir=work_dir,
            token_files=tuple(chunks.token_path(chunk, split) for chunk in work),
            token_counts=token_counts,
            records=records,
            sequence_length=config.sequence_length,
            token_dtype=work[0].token_dtype,
        )
        items.append(item)
    return items


def _publish(
    result: manifest.Manifest, items: Sequence[shards.ShardItem], output_dir: str
) -> None:
    """Moves the dataset out of the work folder, the manifest last.

    A run that is stopped here continues here: what has been moved is not moved again.
    """
    work_dir = os.path.join(output_dir, _WORK_FOLDER)
    manifest_path = os.path.join(output_dir, manifest.FILE_NAME)
    replaced_path = os.path.join(work_dir, "replaced.json")
    if os.path.exists(manifest_path):  # of the dataset that --overwrite replaces
        os.replace(manifest_path, replaced_path)
    if os.path.exists(replaced_path):
        with open(replaced_path) as stream:
            replaced = json.load(stream)["splits"].values()
        for name in [shard["name"] for split in replaced for shard in split["shards"]]:
            if os.path.exists(os.path.join(output_dir, name)):
                os.remove(os.path.join(output_dir, name))
        os.remove(replaced_path)
    for item in items:
        target = os.path.join(output_dir, item.name)
        if os.path.exists(item.path) or not os.path.exists(target):
            os.replace(item.path, target)
    shutil.copytree(
        os.path.join(work_dir, manifest.TOKENIZER_FOLDER),
        os.path.join(output_dir, manifest.TOKENIZER_FOLDER),
        dirs_exist_ok=True,
    )
    with open(manifest_path + ".partial", "w") as stream:
        stream.write(manifest.to_json(result))
    os.replace(manifest_path + ".partial", manifest_path)
    shutil.rmtree(work_dir)


def _open_work(job: jobs.Job, output_dir: str, *, overwrite: bool) -> None:
    """Makes the folder for unfinished work, or finds that of a stopped run.

    Raises:
      ConfigError: a run of another job was stopped here.
    """
    work_dir = os.path.join(output_dir, _WORK_FOLDER)
    path = os.path.join(work_dir, "job.json")
    # Without job.json it was being removed; beside its finished dataset it was, too.
    usable = os.path.exists(path) and _dataset_differences(job, output_dir) != []
    if usable:
        with open(path) as stream:
            different = job.differences(json.load(stream))
        if different and not overwrite:
            raise ConfigError(
                f"{output_dir} holds the work of a run that was stopped, with other "
                f"{', '.join(different)}. Finish it with the config that it began "
                "with, or give another --output_dir, or --overwrite."
            )
        usable = not different
    if not usable and os.path.exists(work_dir):
        shutil.rmtree(work_dir)
    os.makedirs(work_dir, exist_ok=True)
    with open(path + ".partial", "w") as stream:
        json.dump(job.description(), stream)
    os.replace(path + ".partial", path)


def _dataset_differences(job: jobs.Job, output_dir: str) -> list[str] | None:
    """Names the fields in which the dataset there differs; None: there is none."""
    if not os.path.exists(os.path.join(output_dir, manifest.FILE_NAME)):
        return None
    return job.differences(manifest.load(output_dir).config)


def _print_result(result: manifest.Manifest) -> None:
    if FLAGS.json:
        print(manifest.to_json(result), end="")
        return
    columns = "{:12}{:>12}{:>14}{:>14}{:>12}{:>8}"
    print(columns.format("split", "documents", "words", "tokens", "records", "shards"))
    for name, split in result.splits.items():
        numbers = [split.documents, split.words, split.tokens, split.num_records]
        cells = [f"{number:,}" for number in (*numbers, len(split.shards))]
        print(columns.format(name, *cells))
    print(f"fingerprint {result.fingerprint[:16]}")


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string("output_dir", "", "folder of the dataset")
    flags.DEFINE_string("input", "", "stands for --config.data.input")
    flags.DEFINE_string(
        "validation_input", "", "stands for --config.data.validation_input"
    )
    flags.DEFINE_integer(
        "num_workers", 0, "processes; 0: one for each CPU", lower_bound=0
    )
    flags.DEFINE_bool("overwrite", False, "replace a dataset that is there")


def main() -> None:
    config = FLAGS.config
    config.data.input = FLAGS.input or config.data.input
    config.data.validation_input = (
        FLAGS.validation_input or config.data.validation_input
    )
    validate(config)
    output_dir = FLAGS.output_dir
    if not output_dir or "://" in output_dir:
        raise ConfigError(
            "`--output_dir` must be a folder on this machine; copy it to a bucket "
            f"afterwards. Received: {output_dir!r}."
        )
    job = jobs.plan(config)
    different = _dataset_differences(job, output_dir)
    if different and not FLAGS.overwrite:
        raise ConfigError(
            f"{output_dir} holds a dataset made with other "
            f"{', '.join(different)}. Give another --output_dir, or --overwrite."
        )
    if different == [] and not FLAGS.overwrite:
        print(f"{output_dir} holds this dataset already.", file=sys.stderr)
        result = manifest.load(output_dir)
        shutil.rmtree(os.path.join(output_dir, _WORK_FOLDER), ignore_errors=True)
    else:
        num_workers = FLAGS.num_workers or os.cpu_count() or 1
        result = preprocess(job, output_dir, num_workers, overwrite=FLAGS.overwrite)
    _print_result(result)


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
