"""Names and counts of variables, and patterns that select among them."""

import collections
import fnmatch
import re
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from configs.errors import UserError


def num_parameters(variables: Iterable[tf.Variable]) -> int:
    """Returns the number of values."""
    return sum(variable.shape.num_elements() for variable in variables)


def num_bytes(variables: Iterable[tf.Variable]) -> int:
    """Returns the size of the values in bytes."""
    return sum(
        variable.shape.num_elements() * variable.dtype.size for variable in variables
    )


def means_of_rows(table: tf.Tensor, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns a table for a new vocabulary, each row the mean of old rows.

    Args:
      table: [V, …].
      rows: for each new row, the old ones; an empty list stands for all.
    """
    values, mean = table.numpy(), tf.reduce_mean(table, axis=0).numpy()
    return np.stack([values[i].mean(0) if len(i) else mean for i in rows])


def name_of(variable: tf.Variable) -> str:
    """Returns the name that people know, `transformer.h.0.ln_1.weight`: PyTorch's."""
    name = re.sub(r"^tf\w*(model|classification)(_\d+)?/|:0$", "", variable.name)
    name = name.replace("_._", ".").replace("/", ".")
    name = re.sub(r"\b(gamma|embeddings|(?<=^score\.)kernel)$", "weight", name)
    return re.sub(r"\bbeta$", "bias", name)


def kind_of(name: str) -> str:
    """Returns the name without the number of its layer, `transformer.h.*.ln_1`."""
    return re.sub(r"\.\d+\.", ".*.", name)


def listed(names: Iterable[str]) -> str:
    """Lists names; one of every layer is named once."""
    counts = collections.Counter(map(kind_of, names))
    return ", ".join(
        f"{name} (x {count})" if count > 1 else name for name, count in counts.items()
    )


def select(field: str, patterns: str, names: Sequence[str]) -> list[str]:
    """Returns the names that the value of a config field selects, in their order.

    Args:
      field: of the config, for messages.
      patterns: separated by commas. Each matches whole parts between the dots of a
        name, with `*`, `?` and `[…]`. One with "!" before it leaves out what it
        matches, of all names where no other pattern selects some.
      names: to select from.

    Raises:
      UserError: a pattern matches nothing, or nothing is left.
    """
    chosen: dict[bool, set[str]] = {True: set(), False: set()}
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        glob = f"*.{pattern.removeprefix('!')}.*"
        matched = {name for name in names if fnmatch.fnmatchcase(f".{name}.", glob)}
        if not matched:
            raise UserError(
                f"Each pattern of `{field}` must match a name. Received: {pattern!r}. "
                f"There are: {listed(names) or 'none'}."
            )
        chosen[not pattern.startswith("!")] |= matched
    kept = (chosen[True] or set(names)) - chosen[False]
    if not kept:
        raise UserError(
            f"`{field}` must leave something to train. Received: {patterns!r}, which "
            f"leaves out all of: {listed(names)}."
        )
    return [name for name in names if name in kept]
