"""Turns `--grid.FIELD=A,B,…` into a study's cells, a config for each combination."""

import copy
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from configs import paths, schema
from configs.errors import UserError
from configs.schema import Config

_KINDS = {int: "whole numbers", bool: "true or false"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of a grid's values.

    Attributes:
      name: of its folder, such as "n_layer=2+learning_rate=0.001".
      values: of the grid's fields.
      config: of the run.
    """

    name: str
    values: dict[str, Any]
    config: Config


def define_grid() -> None:
    """Defines `--grid.FIELD` for each config field that the command line names so."""
    flags.DEFINE_string(
        "grid.FIELD",
        "",
        "values of a config field, separated by commas: one run for each. Several "
        "fields are combined",
    )
    typed = {argument.lstrip("-").split("=")[0] for argument in sys.argv[1:]}
    for field in schema.flatten(Config()):
        name = f"grid.{field}"
        if name in typed and name not in flags.FLAGS:
            parser, serializer = flags.ListParser(), flags.CsvListSerializer(",")
            flags.DEFINE_multi(parser, serializer, name, None, f"values of {field}")


def typed_grid() -> dict[str, list[str]]:
    """Returns field -> values, as they were typed, of all flags `--grid.FIELD`."""
    names = [name for name in flags.FLAGS if name.startswith("grid.")]
    names.remove("grid.FIELD")
    return {
        name.removeprefix("grid."): list(itertools.chain(*flags.FLAGS[name].value))
        for name in names
    }


def cells(
    config: Config,
    path: str,
    grid: Mapping[str, Sequence[str]],
    check: Callable[[Config], None],
) -> list[Cell]:
    """Returns the cells of a grid, the last field's values in a row.

    Args:
      config: that the cells change.
      path: of the config's file, by which the types of its fields are known.
      grid: field -> values, as they were typed.
      check: raises UserError for a config that cannot be trained.

    Raises:
      UserError: lists all problems of the grid, or else those of all cells.
    """
    if not grid:
        raise UserError(
            "`--grid.FIELD=A,B,…` must name a config field and its values. Received: "
            "none. Such as `--grid.optimizer.learning_rate=3e-4,1e-3`."
        )
    values = {
        field: [_value(path, field, text) for text in grid[field]] for field in grid
    }
    _raise_all(_grid_problems(grid, values))
    rows = itertools.product(*values.values())
    result = [_cell(config, dict(zip(grid, row, strict=True))) for row in rows]
    _raise_all(_cell_problems(result, check))
    return result


def _cell(config: Config, values: dict[str, Any]) -> Cell:
    config = copy.deepcopy(config)
    names = [field.rpartition(".")[2] for field in values]
    if len(set(names)) < len(names):  # such as data.seed and training.seed
        names = list(values)
    for field, value in values.items():
        *parents, name = field.split(".")
        setattr(functools.reduce(getattr, parents, config), name, value)
    parts = (f"{n}={v}" for n, v in zip(names, values.values(), strict=True))
    return Cell(re.sub(r"[^\w.=+-]", "_", "+".join(parts)), values, config)


def _value(path: str, field: str, text: str) -> Any:
    """Returns a value as `--config.FIELD=…` reads it; the error if it cannot."""
    argv = ["study", f"--config={path}", f"--config.{field}={text}"]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=values, lock_config=False, sys_argv=argv
    )
    try:
        values(argv)
    except flags.Error as error:
        return error
    return schema.flatten(values.config)[field]


def _grid_problems(
    grid: Mapping[str, Sequence[str]], values: Mapping[str, Sequence[Any]]
) -> Iterator[str]:
    types = {name: type(v) for name, v in schema.flatten(Config()).items()}
    for field, texts in grid.items():
        wrong = [
            text
            for text, value in zip(texts, values[field], strict=True)
            if isinstance(value, Exception)
        ]
        kind = _KINDS.get(types[field], "numbers")
        if wrong:
            yield f"`--grid.{field}` must be {kind}. Received: {', '.join(wrong)}."
        elif not texts:
            yield f"`--grid.{field}` must have values, separated by commas."
        elif len({str(value) for value in values[field]}) < len(texts):
            received = ",".join(texts)
            yield f"`--grid.{field}` must have each value once. Received: {received}."


def _cell_problems(
    cells: Sequence[Cell], check: Callable[[Config], None]
) -> Iterator[str]:
    """Yields each problem once, with the cells that have it."""
    having: dict[str, list[str]] = {}
    for cell in cells:
        try:
            paths.expand_config(cell.config)
            check(cell.config)
        except ValueError as error:
            for problem in str(error).splitlines():
                having.setdefault(problem, []).append(cell.name)
    for problem, names in having.items():
        where = "" if len(names) == len(cells) else f"{', '.join(names)}: "
        yield f"{where}{problem}"
    if len({cell.name for cell in cells}) < len(cells):
        yield "Two cells have the same folder name: change a path or text of the grid."


def _raise_all(problems: Iterator[str]) -> None:
    if message := "\n".join(problems):
        raise UserError(message)
