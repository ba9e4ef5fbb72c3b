"""Hugging Face's `datasets`: by name, and the folders that it saves."""

import json
import os
from collections.abc import Sequence
from typing import Any

from configs.errors import DataError, UserError, one_message
from configs.schema import DataConfig
from data_pipeline.sources.input_files import split_name
from tfrecords.storage import files


def list_files(name: str, config: DataConfig) -> list[str]:
    """Returns the Arrow files of a split; downloads and converts it if necessary.

    Args:
      name: `hf:NAME[:CONFIG]/SPLIT`. NAME is one of the hub, or a folder. HF_HOME of
        the environment is where it is kept.
      config: not used.

    Raises:
      UserError: the library is not installed.
      DataError: the dataset or the split does not exist, or is a part of a split.
    """
    del config
    dataset, split = split_name(name)
    dataset, _, config_name = dataset.partition(":")
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "`hf:` needs the extra datasets: pip install 'gpt2-tpu[datasets]'."
        ) from error
    with one_message(
        DataError,
        "`hf:NAME[:CONFIG]/SPLIT` must name a dataset of the hub and one of its "
        f"splits. Received: {name!r}, which fails with:",
    ):
        rows = datasets.load_dataset(dataset, config_name or None, split=split)
        return [file["filename"] for file in rows.cache_files]


def select_saved(paths: Sequence[str]) -> list[str]:
    """Leaves out what is not data, in folders that `save_to_disk` wrote.

    Beside the data are descriptions, and what `map` and `filter` have cached.

    Raises:
      DataError: a folder has several splits, or lacks a file.
    """
    dropped: set[str] = set()
    for path in paths:
        folder, name = os.path.split(path)
        if name == "dataset_dict.json" and (splits := _load(path).get("splits")):
            _check_split(splits, folder)
            dropped.add(path)
        elif name == "state.json" and (names := _saved_files(path)):
            data = {files.join(folder, name) for name in names}
            if missing := data.difference(paths):
                raise DataError(
                    f"{folder} must have all files that its {name} names. Received: "
                    f"none named {min(missing)}. Copy the folder again."
                )
            dropped |= {p for p in paths if os.path.dirname(p) == folder} - data
    return [path for path in paths if path not in dropped]


def _check_split(splits: Sequence[str], folder: str) -> None:
    if len(splits) > 1:
        raise DataError(
            "The input must be one split of a saved dataset. Received: "
            f"{folder}, which has {', '.join(splits)}. Name one of them, such as "
            f"{files.join(folder, splits[0])}."
        )


def _saved_files(path: str) -> list[str]:
    return [file["filename"] for file in _load(path).get("_data_files", [])]


def _load(path: str) -> dict[str, Any]:
    """Returns an object of JSON; an empty one for what is none."""
    try:
        values = json.loads(files.read(path))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
