"""TensorFlow Datasets: each example of a split is a document."""

import functools
import os
from collections.abc import Iterator
from typing import Any

from configs.errors import DataError, one_message
from configs.schema import DataConfig
from data_pipeline.documents.document import Document
from data_pipeline.sources import rows
from data_pipeline.sources.input_files import Piece, split_name


def list_files(name: str, config: DataConfig) -> list[str]:
    """Returns the files of a split; downloads and builds the dataset if necessary.

    Args:
      name: `tfds:NAME[:VERSION]/SPLIT`.
      config: `tfds_data_dir` is the folder of the datasets.

    Raises:
      DataError: the dataset or the split does not exist, or is a part of a split.
    """
    import tensorflow_datasets

    dataset, split = split_name(name)
    with one_message(
        DataError,
        "`tfds:NAME[:VERSION]/SPLIT` must name a dataset of tensorflow-datasets and "
        f"one of its splits. Received: {name!r}, data_dir {config.tfds_data_dir!r}, "
        "which fails with:",
    ):
        data_dir = config.tfds_data_dir or None
        builder = tensorflow_datasets.builder(dataset, data_dir=data_dir)
        builder.download_and_prepare()
        return [str(path) for path in builder.info.splits[split].filepaths]


def read(piece: Piece, config: DataConfig) -> Iterator[Document]:
    """Yields the documents of a file."""
    import tensorflow_datasets

    folder, file_name = os.path.split(piece.file.path)
    builder, examples_of = _open_dataset(folder)
    columns = rows.columns(config, builder.info.features, folder)
    examples = builder.as_dataset(
        split=examples_of[file_name],
        shuffle_files=False,
        decoders=tensorflow_datasets.decode.PartialDecoding(
            dict.fromkeys(columns, True)
        ),
    )
    for number, example in enumerate(tensorflow_datasets.as_numpy(examples)):
        name_row = f"{piece.file.path}, example {number}".__str__
        yield rows.to_document(example, name_row, config)


@functools.lru_cache(maxsize=1)
def _open_dataset(folder: str) -> tuple[Any, dict[str, Any]]:
    """Returns a dataset's builder, and which examples each of its files holds."""
    from tensorflow_datasets import builder_from_directory, core

    builder = builder_from_directory(folder)
    examples_of = {}
    for split in builder.info.splits.values():
        start = 0
        names = sorted(split.filenames)
        for name, length in zip(names, split.shard_lengths, strict=True):
            end = start + length
            examples_of[name] = core.ReadInstruction(
                split.name, from_=start, to=end, unit="abs"
            )
            start = end
    return builder, examples_of
