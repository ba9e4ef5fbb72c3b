"""Reads and checks the config.json of a Hugging Face checkpoint."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from transformers import PretrainedConfig
from transformers.utils import cached_file

from configs.errors import UserError, one_message


def read_config(checkpoint: str, kind: str) -> dict[str, Any]:
    """Reads config.json.

    Args:
      checkpoint: a Hugging Face folder or name.
      kind: of the model, for the message.

    Raises:
      UserError: it cannot be read.
    """
    with reading(
        f"The checkpoint must be a Hugging Face {kind} folder or name, with config.json"
        f" and weights. Received: {checkpoint!r}."
    ):
        path = cached_file(checkpoint, "config.json")
        if path is None:
            raise OSError("there is no config.json.")
        with open(path, encoding="utf-8") as stream:
            values = json.load(stream)
        if not isinstance(values, dict):
            raise ValueError("config.json is not a JSON object.")
    return values


def check_config(
    values: Mapping[str, Any],
    checkpoint: str,
    *,
    default: PretrainedConfig,
    kind: str,
    fixed: Mapping[str, Any],
    sizes: Sequence[str],
    fractions: Sequence[str],
    choices: Mapping[str, Sequence[str]],
) -> None:
    """Raises UserError where a config.json describes what is not computed here.

    Args:
      values: of config.json, by the names of `default`.
      checkpoint: for the message.
      default: what counts for fields that are left out.
      kind: of the model, for the message.
      fixed: fields that change what the network computes -> their only supported value.
      sizes: fields that are positive integers, or left out where the default is.
      fractions: fields from 0 to 1.
      choices: field -> its supported values.
    """
    problems = list(_config_problems(values, default, fixed, sizes, fractions, choices))
    if problems:
        raise UserError(
            f"The config.json of {checkpoint} must describe a {kind} that can be "
            f"computed here:\n  " + "\n  ".join(problems)
        )


def _config_problems(
    values: Mapping[str, Any],
    default: PretrainedConfig,
    fixed: Mapping[str, Any],
    sizes: Sequence[str],
    fractions: Sequence[str],
    choices: Mapping[str, Sequence[str]],
) -> Iterator[str]:
    for name, value in fixed.items():
        received = values.get(name, value)
        if received != value and not (value == {} and not received):
            yield f"`{name}` must be {value!r}. Received: {received!r}."
    for name in sizes:
        size = values.get(name, getattr(default, name))
        if size is None and getattr(default, name) is None:
            continue
        if type(size) is not int or size < 1:
            yield f"`{name}` must be a positive integer. Received: {size!r}."
            return
    channels = "n_embd" if "n_embd" in sizes else "d_model"
    width, heads = (values.get(n, getattr(default, n)) for n in (channels, "n_head"))
    if width % heads:
        yield (
            f"`{channels}` must be a multiple of `n_head`. Received: {width} and "
            f"{heads}."
        )
    for name in fractions:
        number = values.get(name, 0)
        if type(number) not in (int, float) or not 0 <= number < 1:
            yield f"`{name}` must be a number from 0 to 1. Received: {number!r}."
    for name, known in choices.items():
        if values.get(name, known[0]) not in known:
            yield (
                f"`{name}` must be one of {', '.join(known)}. Received: "
                f"{values[name]!r}."
            )


def reading(rule: str) -> AbstractContextManager[None]:
    """Raises UserError, which begins with `rule`, for whatever reading raises."""
    return one_message(
        UserError, f"{rule} Reading said:", "Correct it, or get it anew."
    )
