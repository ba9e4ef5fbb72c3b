"""The record: `sequence_length` token ids in a `tf.train.Example` in a TFRecord file.

An Example holds one bytes feature, `tokens`: little-endian uint16, or uint32 where the
vocabulary has more than 65,536 ids. A record whose tail is padding has a second one,
`length`: the number of real tokens as little-endian uint32; the real tokens come first.

Every record of the same kind has the same size, so the size of a shard tells its
number of records. Writing needs no TensorFlow: worker processes start in an instant.
"""

import struct
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

TOKENS = "tokens"
LENGTH = "length"
FORMAT_VERSION = 1
MAX_UINT16_VOCABULARY = 1 << 16

# A TFRecord frame: uint64 length, uint32 crc of it, payload, uint32 crc of the payload.
_FRAME_OVERHEAD_BYTES = 16


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Returns the little-endian dtype that holds ids below `vocabulary_size`."""
    return np.dtype("<u2" if vocabulary_size <= MAX_UINT16_VOCABULARY else "<u4")


def serialize(tokens: np.ndarray, length: int | None = None) -> bytes:
    """Serializes one record as a `tf.train.Example`.

    Args:
      tokens: uint16 or uint32 [sequence_length], padded where `length` is given.
      length: number of real tokens; None when all of them are.
    """
    features = _feature(TOKENS, tokens.tobytes())
    if length is not None:
        features += _feature(LENGTH, struct.pack("<I", length))
    return _field(1, features)  # Example.features


def parse(
    serialized: "tf.Tensor", *, sequence_length: int, dtype: np.dtype
) -> dict[str, "tf.Tensor"]:
    """Parses a batch of serialized records.

    Args:
      serialized: string [batch].
      sequence_length: tokens in every record.
      dtype: what `token_dtype` returned when the records were written.

    Returns:
      `tokens` int32 [batch, sequence_length] and `length` int32 [batch].
    """
    import tensorflow as tf  # writing does without it

    full = struct.pack("<I", sequence_length)
    example = tf.io.parse_example(
        serialized,
        {
            TOKENS: tf.io.FixedLenFeature([], tf.string),
            LENGTH: tf.io.FixedLenFeature([], tf.string, default_value=full),
        },
    )
    # decode_raw knows no uint32; ids stay far below 2**31.
    stored = tf.uint16 if dtype.itemsize == 2 else tf.int32
    tokens = tf.cast(tf.io.decode_raw(example[TOKENS], stored), tf.int32)
    length = tf.squeeze(tf.io.decode_raw(example[LENGTH], tf.int32), axis=1)
    (batch,) = serialized.shape
    return {
        TOKENS: tf.ensure_shape(tokens, [batch, sequence_length]),
        LENGTH: tf.ensure_shape(length, [batch]),
    }


def frame(payload: bytes) -> bytes:
    """Frames a payload as TFRecord files do.

    Source: tensorflow/core/lib/io/record_writer.h.
    """
    length = struct.pack("<Q", len(payload))
    return length + _masked_crc(length) + payload + _masked_crc(payload)


def frame_bytes(sequence_length: int, dtype: np.dtype, *, padded: bool = False) -> int:
    """Returns the size on disk of one framed record."""
    record = np.zeros(sequence_length, dtype)
    payload = serialize(record, length=0 if padded else None)
    return len(payload) + _FRAME_OVERHEAD_BYTES


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) | (crc << 17)
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _feature(name: str, value: bytes) -> bytes:
    """One entry of the map Features.feature: {name: Feature(bytes_list=[value])}."""
    feature = _field(1, _field(1, value))  # Feature.bytes_list, BytesList.value
    return _field(1, _field(1, name.encode()) + _field(2, feature))


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited protocol buffer field."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
