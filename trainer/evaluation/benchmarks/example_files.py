"""Reads the examples of a benchmark: of a file as published, or of TFDS."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from configs.errors import DataError, UserError, one_message
from tfrecords.storage import files

Example = Mapping[str, Any]

# "= Title =" begins a page of WikiText, "= = Section = =" does not.
_TITLE = re.compile(r"^ *= (?!=).*(?<!=) = *$")


def load(
    path: str, fields: Mapping[str, type | tuple[type, ...]], *, is_pages: bool = False
) -> list[Example]:
    """Returns the examples of a file.

    Args:
      path: of JSONL, an example a line.
      fields: name -> type, of each example.
      is_pages: whether another file than `.jsonl` is the text of WikiText, whose pages
        are the examples.

    Raises:
      UserError: the file cannot be read.
      DataError: an example lacks a field, or there are none.
    """
    try:
        text = files.read(path).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "`--benchmark_file` must be a file of UTF-8 text. Received: "
            f"{path}: {error}."
        ) from error
    if is_pages and not path.endswith(".jsonl"):
        examples: list[Example] = [{"page": page} for page in _pages(text)]
    else:
        lines = enumerate(text.split("\n"), start=1)
        examples = [
            _example(line, fields, f"{path}:{number}")
            for number, line in lines
            if line.strip()
        ]
    if not examples:
        raise DataError(
            f"`--benchmark_file` must have examples. Received: {path}, which has none."
        )
    return examples


def load_tfds(name: str, fields: Mapping[str, str]) -> list[Example]:
    """Returns the examples of a split of TFDS; downloads it if necessary.

    Args:
      name: `NAME/SPLIT`. TFDS_DATA_DIR of the environment is where it is kept.
      fields: name there -> name in the published file.

    Raises:
      UserError: it cannot be loaded.
    """
    import tensorflow_datasets

    dataset, _, split = name.rpartition("/")
    with one_message(
        UserError,
        f"The benchmark must load as tfds:{name}. It fails with:",
        "Name its file by `--benchmark_file`.",
    ):
        data = tensorflow_datasets.load(dataset, split=split, shuffle_files=False)
        examples = list(tensorflow_datasets.as_numpy(data))
    return [
        {new: _text(example[old]) for old, new in fields.items()}
        for example in examples
    ]


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode().rstrip("\n")
    if getattr(value, "ndim", 0):
        return [_text(item) for item in value]
    return int(value)


def _example(
    line: str, fields: Mapping[str, type | tuple[type, ...]], place: str
) -> Example:
    try:
        values = json.loads(line)
        json.dumps(values, ensure_ascii=False).encode()  # refuses half of a surrogate
        ok = all(isinstance(values[name], kind) for name, kind in fields.items())
        ok = ok and all(isinstance(ending, str) for ending in values.get("endings", ()))
    except (ValueError, LookupError, TypeError, AttributeError):
        ok = False
    if not ok:
        raise DataError(
            f"{place}: each line must be a JSON object with the fields "
            f"{', '.join(fields)}, as the benchmark is published. Received: "
            f"{line[:100]}. Correct the line, or name the file of this benchmark."
        )
    return values


def _pages(text: str) -> Iterator[str]:
    """Yields the pages of WikiText, as the harness's data cuts them."""
    page: list[str] = []
    for line in text.split("\n"):
        if _TITLE.match(line):
            yield from _unless_blank(page)
            page = []
        page.append(line)
    yield from _unless_blank(page)


def _unless_blank(lines: Sequence[str]) -> Iterator[str]:
    if any(line.strip() for line in lines):
        yield "\n".join(lines)
