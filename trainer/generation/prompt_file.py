"""Reads the prompts of `trainer.generate`, before TensorFlow is imported."""

import json
from collections.abc import Sequence
from typing import NamedTuple

from configs.errors import UserError
from tfrecords.storage import text_lines


class Prompt(NamedTuple):
    """A text to continue, and its id in a file of JSONL; None elsewhere."""

    text: str
    id: str | int | None = None


def read(texts: Sequence[str], path: str) -> list[Prompt]:
    """Returns the prompts of `--prompt` or of `--prompt_file`.

    Without any, one empty prompt: the beginning of a text.

    Raises:
      UserError: both are given, or the file cannot be read, is empty, or has lines that
        are no prompts.
    """
    if not path:
        text_lines.check_arguments("prompt", texts)
        return [Prompt(text) for text in texts] or [Prompt("")]
    if texts:
        raise UserError("Give either `--prompt` or `--prompt_file`.")
    lines = text_lines.read("prompt_file", path)
    if path.endswith(".jsonl"):
        return _parse(lines, path)
    return [Prompt(line) for line in lines]


def _parse(lines: Sequence[str], path: str) -> list[Prompt]:
    """Returns the prompts of JSON objects; without an id, it is the line's number."""
    prompts, wrong = [], []
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not (
            isinstance(values, dict)
            and isinstance(values.get("prompt"), str)
            and type(values.get("id", number)) in (str, int)
        ):
            wrong.append(str(number))
            continue
        prompts.append(Prompt(values["prompt"], values.get("id", number)))
    if wrong:
        shown = ", ".join(wrong[:5]) + (", …" if len(wrong) > 5 else "")
        raise UserError(
            '`--prompt_file=….jsonl` must hold {"prompt": "text"} on each line, also '
            f'with an "id", a text or a number. Received: {path}, whose lines {shown} '
            "are others."
        )
    return prompts
