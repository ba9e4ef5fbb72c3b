"""Looks into a dataset: `python -m tfrecords.inspect --data_dir=…`.

Reads every record, compares all checksums and counts with the manifest, and prints
what is there and some examples as text. Needs neither a config nor TensorFlow.
"""

import json
import sys
from typing import Any, NoReturn

import numpy as np
import tokenizers
from absl import app, flags
from tqdm import tqdm

from configs.errors import DataError
from tfrecords import manifest as manifests
from tfrecords import verify
from tfrecords.manifest import Manifest
from tfrecords.storage import files

FLAGS = flags.FLAGS
_HISTOGRAM_BINS = 8


def inspect(data_dir: str, *, read_records: bool, show: int) -> dict[str, Any]:
    """Returns what `main` prints.

    Raises:
      DataError: lists everything that is not as the manifest says.
    """
    manifest = manifests.load(data_dir)
    verify.verify_tokenizer(data_dir, manifest)
    splits = {}
    problems = []
    for name in manifest.splits:
        if read_records:
            statistics, found = _read(data_dir, manifest, name)
            problems += found
            splits[name] = _figures(manifest, name) | _measured(statistics, manifest)
        else:
            verify.verify_shards(data_dir, manifest, name)
            splits[name] = _figures(manifest, name)
    if read_records:
        problems += [
            f"{data_dir} holds {name}, which is not in the manifest."
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
        "examples": _examples(data_dir, manifest, show),
    }


def _read(
    data_dir: str, manifest: Manifest, split: str
) -> tuple[verify.Statistics, list[str]]:
    total = sum(shard.num_bytes for shard in manifest.split(split).shards)
    bar = tqdm(desc=f"verify {split}", total=total, unit="B", unit_scale=True)
    with bar:
        return verify.examine(data_dir, manifest, split, bar.update)


def _figures(manifest: Manifest, name: str) -> dict[str, Any]:
    """What the manifest says of a split."""
    split = manifest.split(name)
    figures = {
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
        figures["truncated_documents"] = split.truncated_documents
        figures["truncated_share_of_tokens"] = split.truncated_tokens / max(
            split.tokens + split.truncated_tokens, 1
        )
    if manifest.labelled:
        figures["labels"] = split.labels
    return figures


def _measured(statistics: verify.Statistics, manifest: Manifest) -> dict[str, Any]:
    """What reading the records showed."""
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


def _examples(data_dir: str, manifest: Manifest, show: int) -> list[dict[str, Any]]:
    """The first records of the first training shard, as text."""
    name = f"{manifests.TOKENIZER_FOLDER}/tokenizer.json"
    stored = files.read(files.join(data_dir, name)).decode()
    tokenizer = tokenizers.Tokenizer.from_str(stored)
    split = next(iter(manifest.splits.values()))
    found = []
    stream = verify.records(files.join(data_dir, split.shards[0].name), manifest.dtype)
    for _, (tokens, length, label) in zip(range(show), stream, strict=False):
        length = len(tokens) if length is None else length
        start = len(tokens) - length if manifest.padding_side == "left" else 0
        real = tokens[start : start + length]
        example = {"text": tokenizer.decode(real, skip_special_tokens=False)}
        example["tokens"] = length
        found.append(example if label is None else {**example, "label": label})
    return found


def _print_table(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if name == "splits":
            for split, figures in value.items():
                print(f"\n{split}")
                for key, figure in figures.items():
                    print(f"  {key.replace('_', ' '):28}{_text(figure)}")
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
    flags.DEFINE_string("data_dir", "", "folder of the dataset")
    flags.DEFINE_bool("verify", True, "read every record and compare all checksums")
    flags.DEFINE_integer("show", 3, "examples to print", lower_bound=0)
    flags.DEFINE_bool("json", False, "print the result as one JSON object")


def main(_: object) -> None:
    try:
        result = inspect(FLAGS.data_dir, read_records=FLAGS.verify, show=FLAGS.show)
    except (ValueError, RuntimeError) as error:
        if not hasattr(error, "exit_code"):
            raise
        _stop(str(error), error.exit_code)
    except PermissionError as error:
        _stop(f"{error.filename} cannot be read: {error.strerror}.")
    if FLAGS.json:
        print(json.dumps(result))
    else:
        _print_table(result)


def _parse(argv: list[str]) -> list[str]:
    try:
        remaining = FLAGS(argv)
    except flags.Error as error:
        _stop(str(error))
    if len(remaining) > 1:
        _stop(f"Only flags are understood. Received: {' '.join(remaining[1:])}")
    return remaining


def _stop(message: str, exit_code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def run() -> None:
    define_flags()
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    run()
