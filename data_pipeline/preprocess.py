"""Turns text into a dataset: `python -m data_pipeline.preprocess --config=… …`.

1. Plan: find the input, cut it into chunks by size (`job`).
2. Load the tokenizer, or train it on the training documents; choose the fastest engine
   that gives its tokens (`encoder`).
3. Where it is wanted: find the documents that are repeated (`duplicates`).
4. First pass: tokenize each chunk by itself (`chunks`).
5. Sum up the counts: now every record's place in the stream of tokens is known.
6. Second pass: write each shard from the ranges that it needs (`shards`).
7. The manifest, last. A folder without it is no dataset.

The result is a pure function of the input's bytes, the tokenizer and `config.data`.
What a stopped run has finished stays in `OUTPUT_DIR/.unfinished` and is not done again.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from configs import cli
from configs.errors import DataError, UserError
from configs.validation import validate
from data_pipeline import (
    chunks,
    dataset_folder,
    duplicates,
    encoder,
    engine,
    shards,
    tokenizer,
)
from data_pipeline import job as jobs
from tfrecords import fingerprints, manifest, schema
from tfrecords.storage import files

FLAGS = flags.FLAGS


def preprocess(
    job: jobs.Job, output_dir: str, runner: engine.Runner, *, overwrite: bool = False
) -> manifest.Manifest:
    """Writes the dataset; see the module's docstring.

    Args:
      job: what is to be made of what.
      output_dir: where, on this machine or in a bucket.
      runner: carries the work out.
      overwrite: replaces a dataset, or the work of a stopped run, of another job.

    Raises:
      DataError: the input cannot be read or is shorter than one sequence.
      UserError: a run of another job was stopped here, and not `overwrite`.
      UserError: another process writes there.
    """
    output_dir = output_dir.rstrip("/")
    with dataset_folder.working_in(job, output_dir, overwrite=overwrite) as work_dir:
        result, items = _make(job, work_dir, runner)
        dataset_folder.publish(result, items, output_dir)
        files.remove_copies(work_dir)
    return result


def _make(
    job: jobs.Job, work_dir: str, runner: engine.Runner
) -> tuple[manifest.Manifest, list[shards.ShardItem]]:
    """Writes the shards into the work folder; returns the manifest and the items."""
    tokenizer_folder = f"{work_dir}/{manifest.TOKENIZER_FOLDER}"
    vocabulary = tokenizer.load_or_train(job, tokenizer_folder)
    work = _plan_chunks(job, work_dir, tokenizer_folder, vocabulary)
    if job.config.deduplicate:
        work = _without_duplicates(work, job, runner)
    counts = _tokenize(work, runner)
    _check_counts(counts, job)

    items = {
        split: shards.plan(split, work, [count[split] for count in counts], work_dir)
        for split in chunks.SPLITS
        if _total(counts, split).documents
    }
    all_items = [item for split_items in items.values() for item in split_items]
    if not files.is_remote(work_dir):
        missing = [item for item in all_items if not files.exists(item.path)]
        token_bytes = np.dtype(work[0].token_dtype).itemsize
        num_bytes = sum(item.num_tokens for item in missing) * token_bytes
        files.check_free_space(work_dir, num_bytes)
    written = _write_shards(all_items, runner)
    result = manifest.Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=job.config.sequence_length,
        token_dtype=np.dtype(work[0].token_dtype).name,
        vocabulary_size=vocabulary.size,
        end_of_text_id=vocabulary.end_of_text_id,
        pad_id=vocabulary.pad_id,
        padding_side=job.config.padding_side,
        tokenizer_fingerprint=fingerprints.of_tokenizer_json(
            files.read(work[0].tokenizer_path).decode()
        ),
        tokenizer_engine=encoder.version(work[0].engine),
        added_tokens=vocabulary.added_tokens,
        mode=job.config.mode,
        config=job.description(),
        splits={
            split: manifest.Split(
                **dataclasses.asdict(_total(counts, split)),
                stride=items[split][0].stride,
                shards=tuple(written[item.name] for item in items[split]),
            )
            for split in items
        },
    )
    return result, all_items


def _plan_chunks(
    job: jobs.Job,
    work_dir: str,
    tokenizer_folder: str,
    vocabulary: encoder.Vocabulary,
) -> list[chunks.Chunk]:
    path = f"{tokenizer_folder}/{tokenizer.FILE_NAME}"
    stored = files.read(path).decode()
    fingerprint = hashlib.sha256(stored.encode()).hexdigest()
    engine_name = encoder.choose(
        stored,
        job.sample_texts(),
        allow_special_tokens=job.config.allow_special_tokens,
    )
    return [
        chunks.Chunk(
            path=f"{work_dir}/chunk-{index:05d}",
            pieces=pieces,
            validation_fraction=fraction,
            config=job.config,
            tokenizer_path=path,
            tokenizer_fingerprint=fingerprint,
            engine=engine_name,
            vocabulary=vocabulary,
            token_dtype=schema.token_dtype(vocabulary.size).str,
        )
        for index, (pieces, fraction) in enumerate(job.groups)
    ]


def _without_duplicates(
    work: Sequence[chunks.Chunk], job: jobs.Job, runner: engine.Runner
) -> list[chunks.Chunk]:
    """Hashes all documents; returns the chunks with their repetitions left out."""
    paths = {}
    with _progress("find duplicates", sum(c.num_bytes for c in work), "B") as bar:
        for chunk, path in runner(duplicates.hash_documents, work):
            paths[chunk.path] = path
            bar.update(chunk.num_bytes)
    num_training = sum(fraction < 1 for _, fraction in job.groups)
    found = duplicates.find([paths[chunk.path] for chunk in work], num_training)
    return [
        dataclasses.replace(chunk, duplicates=numbers)
        for chunk, numbers in zip(work, found, strict=True)
    ]


def _tokenize(
    work: Sequence[chunks.Chunk], runner: engine.Runner
) -> list[dict[str, manifest.Counts]]:
    """Runs the first pass; returns the counts of each chunk, in the chunks' order."""
    found = {}
    num_tokens = 0
    with _progress("tokenize", sum(chunk.num_bytes for chunk in work), "B") as bar:
        for chunk, counts in runner(chunks.tokenize, work):
            found[chunk.path] = counts
            num_tokens += sum(count.tokens for count in counts.values())
            bar.update(chunk.num_bytes)
            seconds = max(bar.format_dict["elapsed"], 1e-9)
            bar.set_postfix_str(f"{num_tokens / seconds:,.0f} tokens/s")
    return [found[chunk.path] for chunk in work]


def _write_shards(
    items: Sequence[shards.ShardItem], runner: engine.Runner
) -> dict[str, manifest.Shard]:
    """Runs the second pass; returns the manifest's entries by name."""
    written = {}
    total = sum(item.num_tokens for item in items)
    with _progress("write", total, "token") as bar:
        for item, shard in runner(shards.write, items):
            written[item.name] = shard
            bar.update(item.num_tokens)
    return written


def _progress(description: str, total: int, unit: str) -> tqdm:
    return tqdm(
        desc=description, total=total, unit=unit, unit_scale=True, file=sys.stderr
    )


def _total(counts: list[dict[str, manifest.Counts]], split: str) -> manifest.Counts:
    return chunks.total(count[split] for count in counts)


def _check_counts(counts: list[dict[str, manifest.Counts]], job: jobs.Job) -> None:
    train, validation = (_total(counts, split) for split in chunks.SPLITS)
    length = job.config.sequence_length
    if not train.documents + validation.documents:
        raise DataError("The input must hold text. It has no document but white space.")
    if (job.validation_fraction or job.validation_files) and not validation.documents:
        raise DataError(
            f"The validation split is empty: {train.documents} documents were split "
            "by their hashes, and none was chosen. Give --validation_input, or cut "
            "plain text into more documents with --config.data.document=paragraph, or "
            "raise --config.data.validation_fraction (0: train without validation)."
        )
    if not train.documents:
        raise DataError(
            "The training split must hold a document. All of them went to validation, "
            "or were left out. Add text, or lower "
            "--config.data.validation_fraction."
        )
    if job.config.mode == "packed" and train.tokens < length:
        raise DataError(
            f"The training split must hold at least one sequence of {length} tokens. "
            f"It has {train.tokens}. Add text, or lower "
            "--config.data.sequence_length."
        )


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
    for name, split in result.splits.items():
        changes = {f"skipped, {k}": v for k, v in split.skipped.items()}
        changes |= {f"repaired, {k}": v for k, v in split.repaired.items()}
        changes |= {f"kept with {k}": v for k, v in split.kept.items()}
        changes |= {"truncated": split.truncated_documents}
        for change, count in changes.items():
            if count:
                print(f"{name}: {count:,} documents {change.replace('_', ' ')}")
    print(f"fingerprint {result.fingerprint[:16]}")


def define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string("output_dir", "", "folder of the dataset, or gs://…")
    flags.DEFINE_string("input", "", "stands for --config.data.input")
    flags.DEFINE_string(
        "validation_input", "", "stands for --config.data.validation_input"
    )
    flags.DEFINE_integer(
        "num_workers", 0, "processes; 0: one for each CPU", lower_bound=0
    )
    flags.DEFINE_enum(
        "runner",
        "local",
        ["local", "beam"],
        "processes of this machine, or Apache Beam: options that stand after "
        "--runner=beam and are not of this program are Beam's",
    )
    flags.DEFINE_bool("overwrite", False, "replace a dataset that is there")


def main() -> None:
    config = FLAGS.config
    config.data.input = FLAGS.input or config.data.input
    config.data.validation_input = (
        FLAGS.validation_input or config.data.validation_input
    )
    validate(config)
    output_dir = FLAGS.output_dir.rstrip("/")
    if not output_dir:
        raise UserError("`--output_dir` must name a folder, or gs://BUCKET/FOLDER.")
    # transformers, which is only asked for a tokenizer, then starts in half the time.
    os.environ.update(USE_TF="0", USE_TORCH="0", TRANSFORMERS_NO_ADVISORY_WARNINGS="1")
    job = jobs.plan(config)
    result = None if FLAGS.overwrite else dataset_folder.finished(job, output_dir)
    if result:
        print(f"{output_dir} holds this dataset already.", file=sys.stderr)
    else:
        if FLAGS.runner == "beam":
            engine_used = engine.beam(cli.passed_on())
        else:
            engine_used = engine.local(FLAGS.num_workers or os.cpu_count() or 1)
        with engine_used as runner:
            result = preprocess(job, output_dir, runner, overwrite=FLAGS.overwrite)
    _print_result(result)


def run() -> None:
    cli.run(main, define_flags, passes_on="--runner=beam")


if __name__ == "__main__":
    run()
