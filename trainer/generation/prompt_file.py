"""Reads the prompts of `trainer.generate`, before TensorFlow is imported."""

import json
import sys
from collections.abc import Sequence
from typing import NamedTuple

from configs.errors import UserError
from tfrecords.storage import files


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
        for text in texts:
            # Bytes of an argument that are not UTF-8 become lone surrogates.
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(f"`--prompt` must be UTF-8. Received: {text!a}.")
        return [Prompt(text) for text in texts] or [Prompt("")]
    if texts:
        raise UserError("Give either `--prompt` or `--prompt_file`.")
    try:
        content = sys.stdin.buffer.read() if path == "-" else files.read(path)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`--prompt_file` must be a file of UTF-8 text. Received: {path}: {error}."
        ) from error
    if not text:
        raise UserError(
            f"`--prompt_file` must hold a prompt on each line. Received: {path}, which "
            "is empty."
        )
    # `splitlines` would also split at ten other characters.
    lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
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
