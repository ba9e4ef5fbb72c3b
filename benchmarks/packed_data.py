"""Describes packed data that no tokenizer made."""

from tfrecords import schema
from tfrecords.manifest import Manifest, Split


def describe(train: Split, sequence_length: int, vocabulary_size: int) -> Manifest:
    """Returns the manifest of a dataset whose only split is for training."""
    return Manifest(
        format_version=schema.FORMAT_VERSION,
        sequence_length=sequence_length,
        token_dtype="uint16",
        vocabulary_size=vocabulary_size,
        end_of_text_id=0,
        pad_id=0,
        padding_side="right",
        tokenizer_fingerprint="",
        tokenizer_engine="",
        added_tokens=(),
        mode="packed",
        config={},
        splits={"train": train},
    )
