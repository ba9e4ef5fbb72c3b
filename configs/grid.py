"""Turns `--grid.FIELD=A,B,…` into a study's cells, a config for each combination."""

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from configs import paths, schema
from configs.errors import UserError
from configs.schema import Config


@dataclasses.dataclass(frozen=True)
class Cell:
    """One combination of a grid's values.

    Attributes:
      name: of its folder, such as "n_layer=2+learning_rate=0.001".
      values: of the grid's fields.
      config: of the run.
      flags: `--config` and its fields, from which a program makes this config.
    """

    name: str
    values: dict[str, Any]
    config: Config
    flags: list[str]


def define_grid() -> None:
    """Defines `--grid.FIELD` for each config field that the command line names so."""
    flags.DEFINE_string(
        "grid.FIELD",
        "",
        "values of a config field, separated by commas: a run for each. Several fields "
        "are combined",
    )
    typed = {argument.lstrip("-").split("=")[0] for argument in sys.argv[1:]}
    for name in (f"grid.{field}" for field in schema.flatten(Config())):
        if name in typed:
            parser, serializer = flags.ListParser(), flags.CsvListSerializer(",")
            flags.DEFINE_multi(parser, serializer, name, None, f"values of {name[5:]}")


def typed_grid() -> dict[str, list[str]]:
    """Returns field -> values, as they were typed, of all flags `--grid.FIELD`."""
    grid: dict[str, list[str]] = {}
    for name, texts in flags.FLAGS.flag_values_dict().items():
        if name.startswith("grid.") and name != "grid.FIELD":
            grid[name.removeprefix("grid.")] = list(itertools.chain(*texts))
    return grid


def cells(
    path: str,
    overrides: Mapping[str, Any],
    grid: Mapping[str, Sequence[str]],
    check: Callable[[Config], None],
) -> list[Cell]:
    """Returns the cells of a grid; the values of its last field vary fastest.

    Args:
      path: file of the config that the cells change.
      overrides: fields that the command line changes in all cells.
      grid: field -> values, as they were typed.
      check: raises UserError for a config that cannot be trained.

    Raises:
      UserError: lists the problems of all cells.
    """
    if not grid or not all(grid.values()):
        empty = [f"`--grid.{field}` has none" for field in grid if not grid[field]]
        raise UserError(
            "`--grid.FIELD=A,B,…` must name a config field and its values. Received: "
            f"{', '.join(empty) or 'none'}. Use such as "
            "`--grid.optimizer.learning_rate=3e-4,1e-3`."
        )
    result: dict[str, Cell] = {}
    problems: dict[str, list[str]] = {}  # each with the cells that have it
    for row in itertools.product(*grid.values()):
        texts = dict(zip(grid, row, strict=True))
        try:
            cell = _cell(path, {**overrides, **texts}, list(grid))
            check(cell.config)
        except (flags.Error, ValueError) as error:
            for problem in str(error).splitlines():
                problems.setdefault(problem, []).append(_name(texts))
            continue
        if cell.name in result:
            problems[f"Two cells are {cell.name}: leave one out."] = []
        result[cell.name] = cell
    if problems:
        num_cells = len(list(itertools.product(*grid.values())))
        raise UserError(
            "\n".join(
                problem + f" ({', '.join(names)})" * (0 < len(names) < num_cells)
                for problem, names in problems.items()
            )
        )
    return list(result.values())


def _cell(path: str, fields: Mapping[str, Any], of_grid: Sequence[str]) -> Cell:
    """Reads a cell's config as a program does."""
    arguments = [f"--config={path}", *(f"--config.{k}={v}" for k, v in fields.items())]
    argv, parsed = ["study", *arguments], flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", flag_values=parsed, lock_config=False, sys_argv=argv
    )
    parsed(argv)
    paths.expand_config(parsed.config)
    flat = schema.flatten(parsed.config)
    values = {field: flat[field] for field in of_grid}
    return Cell(_name(values), values, parsed.config, arguments)


def _name(values: Mapping[str, Any]) -> str:
    names = [field.rpartition(".")[2] for field in values]
    if len(set(names)) < len(names):  # such as data.seed and training.seed
        names = list(values)
    parts = (f"{n}={v}" for n, v in zip(names, values.values(), strict=True))
    return re.sub(r"[^\w.=+-]", "_", "+".join(parts))
