"""Turns the input of a job into a dataset.

1. Load the tokenizer, or train it on the training documents; choose the fastest engine
   that gives its tokens (`tokens.engine_choice`).
2. If the config says so: find repeated documents (`documents.duplicates`).
3. First pass: tokenize each chunk of documents by itself (`tokens.token_files`).
4. Add up the counts. Now the place of every record in the stream of tokens is known.
5. Second pass: write each shard from the tokens that it needs (`records.shards`).
6. Publish: move the shards out of the work folder, and write the manifest last.

The result is a pure function of the input's bytes, the tokenizer and `config.data`.
What a stopped run has finished stays in `OUTPUT_DIR/.unfinished` and is not done again.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Sequence

from absl import logging

from configs.errors import DataError
from configs.progress import progress
from data_pipeline import dataset_folder
from data_pipeline.documents import document, duplicates
from data_pipeline.documents.chunk import SPLITS
from data_pipeline.job import Job
from data_pipeline.records import shards
from data_pipeline.runners import Item, Result, Runner
from data_pipeline.tokens import encoder, engine_choice, token_files, tokenizer
from data_pipeline.tokens.encoder import StoredTokenizer
from tfrecords import checksums, fingerprints, manifest, schema, tfds_metadata
from tfrecords.manifest import Counts
from tfrecords.storage import files

# Share of unknown tokens, or of documents that do not decode to themselves.
_WARNED_LOSS, _ALLOWED_LOSS = 0.001, 0.05


def preprocess(
    job: Job, output_dir: str, runner: Runner, *, overwrite: bool = False
) -> manifest.Manifest:
    """Writes the dataset of a job; see the module's docstring.

    Args:
      job: all that the dataset depends on.
      output_dir: folder of the dataset, local or `gs://…`.
      runner: carries out the work items.
      overwrite: whether to replace another dataset, or the unfinished work of another
        job.

    Raises:
      DataError: the input cannot be read, or is shorter than one sequence.
      UserError: the folder holds unfinished work of another job, and not `overwrite`;
        or another process writes there.
    """
    output_dir = output_dir.rstrip("/")
    with dataset_folder.working_in(job, output_dir, overwrite=overwrite) as work_dir:
        result, items = _make_shards(job, work_dir, runner)
        dataset_folder.publish(result, items, output_dir)
        files.remove_copies(work_dir)
    return result


def _make_shards(
    job: Job, work_dir: str, runner: Runner
) -> tuple[manifest.Manifest, list[shards.ShardItem]]:
    """Writes the shards into the work folder; returns the manifest and the items."""
    stored_tokenizer = _store_tokenizer(job, f"{work_dir}/{manifest.TOKENIZER_FOLDER}")
    repeated: list[tuple[int, ...]] = [()] * len(job.chunks)
    if job.config.deduplicate:
        repeated = _find_duplicates(job, work_dir, runner)
    work = [
        token_files.TokenizeItem(chunk, work_dir, stored_tokenizer, numbers)
        for chunk, numbers in zip(job.chunks, repeated, strict=True)
    ]
    sizes = [chunk.num_bytes for chunk in job.chunks]
    counts = _run(runner, token_files.tokenize, work, sizes, "tokenize")
    totals = {
        split: token_files.add_counts(count[split] for count in counts)
        for split in SPLITS
    }
    _check_counts(totals, job)
    _warn_of_special_tokens(totals)
    _check_losses(totals, job)
    values, names = _label_values(totals)
    items = {
        split: shards.plan(
            split, work, [count[split] for count in counts], work_dir, values
        )
        for split in SPLITS
        if totals[split].documents
    }
    all_items = [item for of_split in items.values() for item in of_split]
    _check_room(all_items, work_dir)
    sizes = [item.num_tokens for item in all_items]
    entries = iter(_run(runner, shards.write, all_items, sizes, "write", "token"))
    splits = {
        split: manifest.Split(
            **dataclasses.asdict(totals[split]),
            stride=of_split[0].stride,
            shards=tuple(itertools.islice(entries, len(of_split))),
        )
        for split, of_split in items.items()
    }
    result = _manifest(job, stored_tokenizer, splits)
    return dataclasses.replace(result, label_names=names), all_items


def _label_values(totals: dict[str, Counts]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Returns what is stored of each label, and the labels' names.

    Integers are stored as they are, and have no names. If a label is not an integer,
    all are names, and the number of a name is stored.
    """
    names = sorted({name for counts in totals.values() for name in counts.labels})
    if all(map(document.is_integer, names)):
        return {name: int(name) for name in names}, ()
    return {name: number for number, name in enumerate(names)}, tuple(names)


def _store_tokenizer(job: Job, folder: str) -> StoredTokenizer:
    vocabulary = tokenizer.load_or_train(job, folder)
    path = f"{folder}/{tokenizer.FILE_NAME}"
    content = files.read(path).decode()
    template, engine = "", encoder.REFERENCE
    if job.config.messages_field:  # needs to know where a token is in the text
        template = files.read(f"{folder}/tokenizer_config.json").decode()
    else:
        allow = job.config.allow_special_tokens
        texts = job.sample_texts()
        engine = engine_choice.choose(content, texts, allow_special_tokens=allow)
    return StoredTokenizer(
        path=path,
        sha256=hashlib.sha256((content + template).encode()).hexdigest(),
        engine=engine,
        vocabulary=vocabulary,
    )


def _find_duplicates(job: Job, work_dir: str, runner: Runner) -> list[tuple[int, ...]]:
    """Returns, for each chunk, the numbers of its documents that are repetitions."""
    items = [(chunk, work_dir) for chunk in job.chunks]
    sizes = [chunk.num_bytes for chunk in job.chunks]
    paths = _run(runner, duplicates.hash_documents, items, sizes, "hash")
    num_training = sum(chunk.validation_fraction < 1 for chunk in job.chunks)
    return duplicates.find(paths, num_training)


def _run(
    runner: Runner,
    function: Callable[[Item], Result],
    items: Sequence[Item],
    sizes: Sequence[int],
    description: str,
    unit: str = "B",
) -> list[Result]:
    """Returns the function's results in the order of the items, and shows progress."""
    results = {}
    with progress(description, sum(sizes), unit, unit_scale=True) as bar:
        for index, result in runner(function, items):
            results[index] = result
            bar.update(sizes[index])
    return [results[index] for index in range(len(items))]


def _manifest(
    job: Job, stored_tokenizer: StoredTokenizer, splits: dict[str, manifest.Split]
) -> manifest.Manifest:
    vocabulary = stored_tokenizer.vocabulary
    result = manifest.Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=job.config.sequence_length,
        token_dtype=schema.token_dtype(vocabulary.size).name,
        vocabulary_size=vocabulary.size,
        end_of_text_id=vocabulary.end_of_text_id,
        pad_id=vocabulary.pad_id,
        padding_side=job.config.padding_side,
        tokenizer_fingerprint=fingerprints.of_tokenizer_json(
            files.read(stored_tokenizer.path).decode()
        ),
        tokenizer_engine=engine_choice.version(stored_tokenizer.engine),
        added_tokens=vocabulary.added_tokens,
        mode=job.config.mode,
        config=job.description(),
        splits=splits,
    )
    folder = stored_tokenizer.path.rpartition("/")[0]
    other_files = {
        f"{manifest.TOKENIZER_FOLDER}/{name}": checksums.sha256(
            files.join(folder, name)
        )[1]
        for name in files.sizes_and_versions(folder)
    }
    for name, content in tfds_metadata.contents(result).items():
        other_files[name] = hashlib.sha256(content).hexdigest()
    return dataclasses.replace(result, other_files=other_files)


def _warn_of_special_tokens(totals: dict[str, Counts]) -> None:
    kept = [counts.kept for counts in totals.values()]
    number = sum(counts.get(document.SPECIAL_TOKEN_AS_TEXT, 0) for counts in kept)
    if number:
        logging.warning(
            "%d special tokens in the text, such as <|endoftext|>, became text. If "
            "they separate documents, set --config.data.allow_special_tokens",
            number,
        )


def _check_losses(totals: dict[str, Counts], job: Job) -> None:
    """Warns of a tokenizer that loses text; raises DataError where it is much."""
    total = token_files.add_counts(totals.values())
    unknown, changed = (total.kept.get(name, 0) for name in document.LOSSES)
    num_tokens = total.tokens + total.truncated_tokens
    shares = unknown / max(num_tokens, 1), changed / max(total.documents, 1)
    if max(shares) <= _WARNED_LOSS:
        return
    received = (
        f"{unknown:,} of {num_tokens:,} tokens ({shares[0]:.2%}) are unknown, and "
        f"{changed:,} of {total.documents:,} documents ({shares[1]:.2%}) do not decode "
        "to themselves"
    )
    if max(shares) > _ALLOWED_LOSS and not job.config.allow_lossy_tokenizer:
        raise DataError(
            f"`data.tokenizer` must keep {1 - _ALLOWED_LOSS:.0%} of the text as it is. "
            f"Received: {job.config.tokenizer!r}, of which {received}. Name another, "
            "or set --config.data.allow_lossy_tokenizer: what is finished is not done "
            "again."
        )
    logging.warning("the tokenizer loses text: %s", received)


def _check_room(items: Sequence[shards.ShardItem], work_dir: str) -> None:
    """Raises RunError if the disk has no room for the shards that are to be written."""
    if files.is_remote(work_dir):
        return
    missing = [item for item in items if not files.exists(item.path)]
    num_bytes = sum(item.num_tokens * item.token_dtype.itemsize for item in missing)
    files.check_free_space(work_dir, num_bytes)


def _check_counts(totals: dict[str, Counts], job: Job) -> None:
    train, validation = (totals[split] for split in SPLITS)
    length = job.config.sequence_length
    if not train.documents + validation.documents:
        raise DataError(
            "The input must hold text. Received: no document but white space. Name "
            "other files."
        )
    if (job.validation_fraction or job.validation_files) and not validation.documents:
        raise DataError(
            "The validation split must hold a document. Received: "
            f"{train.documents} documents, none of which its hash assigns to that "
            "split. Give --validation_input, or cut plain text into more documents "
            "with --config.data.document=paragraph, or raise "
            "--config.data.validation_fraction (0: train without validation)."
        )
    if not train.documents:
        raise DataError(
            "The training split must hold a document. Received: "
            f"{validation.documents} documents, all of which went to validation or "
            "were left out. Add text, or lower --config.data.validation_fraction."
        )
    # A record's first token has no context: the others bear the loss.
    num_first = 1 if job.config.mode == "packed" else validation.documents
    if validation.documents and validation.tokens <= num_first:
        raise DataError(
            "The validation split must hold a document of two tokens or more. "
            f"Received: {validation.documents} documents with {validation.tokens} "
            "tokens. Add longer documents, or raise "
            "--config.data.validation_fraction (0: train without validation)."
        )
    if job.config.mode == "packed" and train.tokens < length:
        raise DataError(
            f"The training split must hold at least one sequence of {length} tokens. "
            f"Received: {train.tokens} tokens. Add text, or lower "
            "--config.data.sequence_length."
        )
