"""Checks and describes a dataset: `python -m tfrecords.inspect --data_dir=…`.

Reads every record, compares all checksums and counts with the manifest, and prints
statistics and some examples as text. Needs neither a config nor TensorFlow.
"""

import json
from itertools import islice
from typing import Any

import numpy as np
from absl import flags

from configs import cli
from configs.errors import DataError, UserError
from configs.progress import progress
from tfrecords import manifest as manifests
from tfrecords import verify
from tfrecords.manifest import Manifest
from tfrecords.storage import files

FLAGS = flags.FLAGS
_HISTOGRAM_BINS = 8


def inspect(data_dir: str, *, read_records: bool, num_examples: int) -> dict[str, Any]:
    """Checks a dataset and describes its contents.

    Args:
      data_dir: folder of the dataset.
      read_records: whether to read all records and compare all checksums. If not, only
        sizes and counts are checked.
      num_examples: number of records to return as text.

    Returns:
      The description, as `--json` prints it.

    Raises:
      DataError: lists all differences from the manifest.
    """
    manifest = manifests.load(data_dir)
    verify.verify_files(data_dir, manifest)
    splits = {}
    problems = []
    for name in manifest.splits:
        if read_records:
            statistics, split_problems = _read(data_dir, manifest, name)
            problems += split_problems
            splits[name] = _counts(manifest, name) | _measured(statistics, manifest)
        else:
            verify.verify_shards(data_dir, manifest, name)
            splits[name] = _counts(manifest, name)
    if read_records:
        problems += [
            f"{data_dir} holds {name}, which is not in the manifest. Remove it."
            for name in verify.unlisted_shards(data_dir, manifest)
        ]
    if problems:
        raise DataError("\n".join(problems))
    return {
        "fingerprint": manifest.fingerprint,
        "verified": read_records,
        "mode": manifest.mode,
        "sequence_length": manifest.sequence_length,
        "vocabulary_size": manifest.vocabulary_size,
        "tokenizer_engine": manifest.tokenizer_engine,
        "splits": splits,
        "examples": _examples(data_dir, manifest, num_examples),
    }


def _read(
    data_dir: str, manifest: Manifest, split: str
) -> tuple[verify.Statistics, list[str]]:
    total = sum(shard.num_bytes for shard in manifest.split(split).shards)
    with progress(f"verify {split}", total, "B", unit_scale=True) as bar:
        return verify.examine(data_dir, manifest, split, bar.update)


def _counts(manifest: Manifest, name: str) -> dict[str, Any]:
    """Returns the manifest's counts of a split."""
    split = manifest.split(name)
    counts = {
        "documents": split.documents,
        "words": split.words,
        "bytes": split.bytes,
        "tokens": split.tokens,
        "records": split.num_records,
        "shards": len(split.shards),
        "skipped_documents": split.skipped,
        "repaired_documents": split.repaired,
        "kept_as_they_are": split.kept,
    }
    if manifest.mode != "packed":
        counts["truncated_documents"] = split.truncated_documents
        counts["truncated_share_of_tokens"] = split.truncated_tokens / max(
            split.tokens + split.truncated_tokens, 1
        )
    if manifest.labelled:
        counts["labels"] = split.labels
    return counts


def _measured(statistics: verify.Statistics, manifest: Manifest) -> dict[str, Any]:
    """Returns the statistics of the records of a split."""
    counts, edges = np.histogram(
        list(statistics.lengths),
        _HISTOGRAM_BINS,
        (0, manifest.sequence_length),
        weights=list(statistics.lengths.values()),
    )
    return {
        "padding_share": statistics.padding_tokens
        / max(statistics.padding_tokens + statistics.real_tokens, 1),
        "smallest_token_id": statistics.smallest_id,
        "largest_token_id": statistics.largest_id,
        "records_by_length": {
            f"{low:.0f}-{high:.0f}": int(count)
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        },
    }


def _examples(data_dir: str, manifest: Manifest, count: int) -> list[dict[str, Any]]:
    """Returns the first records of the first shard as text."""
    if not count:
        return []
    import tokenizers  # takes longer to import than to answer a mistyped flag

    name = f"{manifests.TOKENIZER_FOLDER}/tokenizer.json"
    tokenizer_json = files.read(files.join(data_dir, name)).decode()
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    split = next(iter(manifest.splits.values()))
    path = files.join(data_dir, split.shards[0].name)
    examples = []
    for tokens, length, label in islice(verify.records(path, manifest.dtype), count):
        length = len(tokens) if length is None else length
        start = len(tokens) - length if manifest.padding_side == "left" else 0
        real = tokens[start : start + length]
        example = {"text": tokenizer.decode(real, skip_special_tokens=False)}
        example["tokens"] = length
        if label is not None:
            names = manifest.label_names
            example["label"] = names[label] if names else label
        examples.append(example)
    return examples


def _print_table(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name == "splits":
            for split, counts in value.items():
                print(f"\n{split}")
                for key, count in counts.items():
                    print(f"  {key.replace('_', ' '):28}{_text(count)}")
        elif name == "examples":
            for example in value:
                label = f", label {example['label']}" if "label" in example else ""
                print(f"\n--- {example['tokens']} tokens{label}\n{example['text']}")
        else:
            print(f"{name.replace('_', ' '):30}{_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v:,}" for k, v in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:.2%}"
    return f"{value:,}" if type(value) is int else str(value)


def define_flags() -> None:
    """Defines the flags of this program."""
    cli.define_path("data_dir", "folder of the dataset")
    flags.DEFINE_bool("verify", True, "read every record and compare all checksums")
    flags.DEFINE_integer("show", 3, "number of examples to print", lower_bound=0)


def main() -> None:
    """Prints the description of the dataset that the flags name."""
    if not FLAGS.data_dir:
        raise UserError("--data_dir=DIR is missing.")
    result = inspect(FLAGS.data_dir, read_records=FLAGS.verify, num_examples=FLAGS.show)
    if FLAGS.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def run() -> None:
    """Runs the program."""
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
