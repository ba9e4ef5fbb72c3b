"""Describes a dataset to TensorFlow Datasets, without importing it.

Beside `dataset_info.json` and `features.json`, `tfds.builder_from_directory(FOLDER)`
reads the shards as token ids. The manifest stays the authority: nothing here reads
these files.
"""

import json
from typing import Any

from tfrecords import schema
from tfrecords.manifest import Manifest

_FEATURES = "tensorflow_datasets.core.features"
_TEMPLATE = "{SPLIT}-{SHARD_X_OF_Y}.{FILEFORMAT}"  # see `manifest.shard_name`


def contents(manifest: Manifest) -> dict[str, bytes]:
    """Returns the files: name -> content."""
    values = {
        "dataset_info.json": _dataset_info(manifest),
        "features.json": _features(manifest),
    }
    return {
        name: (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()
        for name, value in values.items()
    }


def _dataset_info(manifest: Manifest) -> dict[str, Any]:
    return {
        "name": "gpt2_tpu",
        "version": "1.0.0",
        "description": f"Token ids, mode {manifest.mode}; manifest.json says more.",
        "fileFormat": "tfrecord",
        "splits": [
            {
                "name": name,
                "filepathTemplate": _TEMPLATE,
                # As protocol buffers write 64-bit integers in JSON.
                "numBytes": str(sum(shard.num_bytes for shard in split.shards)),
                "shardLengths": [str(shard.num_records) for shard in split.shards],
            }
            for name, split in manifest.splits.items()
        ],
    }


def _features(manifest: Manifest) -> dict[str, Any]:
    # TensorFlow decodes no uint32; ids are far below 2**31.
    dtype = "uint16" if manifest.dtype.itemsize == 2 else "int32"
    features = {schema.TOKENS: _tensor(dtype, manifest.sequence_length)}
    # Full records of a stream have no length; TFDS reads no number that may be missing.
    if not manifest.is_stream:
        features[schema.LENGTH] = _tensor("int32")
    if manifest.labelled:
        features[schema.LABEL] = _tensor("int32")
    if manifest.masked:
        features[schema.MASK] = _tensor("uint8", manifest.sequence_length)
    return {
        "pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict",
        "featuresDict": {"features": features},
    }


def _tensor(dtype: str, *shape: int) -> dict[str, Any]:
    """Describes a tensor that is stored as its bytes."""
    dimensions = {"dimensions": [str(size) for size in shape]} if shape else {}
    return {
        "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "bytes"},
    }
