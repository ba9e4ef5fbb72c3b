"""Serializes records: `tf.train.Example` messages in TFRecord files.

The features of an Example are little-endian bytes:
  tokens: `sequence_length` ids, uint16, or uint32 if the vocabulary has more than
    65,536 ids. The manifest says on which side padding is.
  length: uint32, number of real tokens. In every record, except the full records of a
    packed stream.
  label: int32, in labelled datasets.
  mask: `sequence_length` numbers, uint8, in datasets of completions: 1 of a token whose
    prediction is learnt, 0 of prompts and padding. In conversations the last turn of
    the assistant has 1, and the earlier ones 2.

All records of a kind have the same size, so the size of a shard determines its number
of records. Only `parse` needs TensorFlow, so worker processes start fast.
"""

import functools
import struct
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

TOKENS = "tokens"
LENGTH = "length"
LABEL = "label"
MASK = "mask"
FORMAT_VERSION = 2
MAX_UINT16_VOCABULARY = 1 << 16

# A TFRecord frame is: uint64 length, uint32 CRC of the length, payload, uint32 CRC of
# the payload.
_FRAME_OVERHEAD_BYTES = 16


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Returns the smaller little-endian dtype that holds ids below the given size."""
    return np.dtype("<u2" if vocabulary_size <= MAX_UINT16_VOCABULARY else "<u4")


def serialize(
    tokens: np.ndarray,
    length: int | None = None,
    label: int | None = None,
    mask: np.ndarray | None = None,
) -> bytes:
    """Serializes one record as a `tf.train.Example`.

    Args:
      tokens: uint16 or uint32 [sequence_length], little-endian, with padding.
      length: number of real tokens. None: all.
      label: label of a labelled document, an int32.
      mask: uint8 [sequence_length], of completions.
    """
    features = _feature(TOKENS, tokens.tobytes())
    if length is not None:
        features += _feature(LENGTH, struct.pack("<I", length))
    if label is not None:
        features += _feature(LABEL, struct.pack("<i", label))
    if mask is not None:
        features += _feature(MASK, mask.tobytes())
    return _field_start(1, len(features)) + features  # Example.features


def deserialize(
    payload: bytes, dtype: np.dtype
) -> tuple[np.ndarray, int | None, int | None]:
    """Parses one serialized record, without TensorFlow.

    Args:
      payload: result of `serialize`.
      dtype: dtype of the stored tokens.

    Returns:
      (tokens, length, label); length and label are None if the record lacks them. A
      mask is not returned.

    Raises:
      ValueError: the payload is not a record.
    """
    try:
        ((_, features),) = _fields(payload)
        values = {}
        for _, entry in _fields(features):
            (_, name), (_, feature) = _fields(entry)
            ((_, bytes_list),) = _fields(feature)
            ((_, value),) = _fields(bytes_list)
            values[name.decode()] = value
        tokens = np.frombuffer(values.pop(TOKENS), dtype)
        length = struct.unpack("<I", values.pop(LENGTH)) if LENGTH in values else [None]
        label = struct.unpack("<i", values.pop(LABEL)) if LABEL in values else [None]
        values.pop(MASK, None)
    except (ValueError, KeyError, IndexError, struct.error) as error:
        raise ValueError(f"not a record: {error!r}") from error
    if values:
        raise ValueError(f"not a record: it has the features {', '.join(values)}")
    return tokens, length[0], label[0]


def parse(
    serialized: "tf.Tensor",
    *,
    sequence_length: int,
    dtype: np.dtype,
    labelled: bool = False,
    masked: bool = False,
) -> dict[str, "tf.Tensor"]:
    """Parses a batch of serialized records with TensorFlow.

    Args:
      serialized: string [batch].
      sequence_length: tokens of a record.
      dtype: dtype of the stored tokens.
      labelled: whether the records have labels.
      masked: whether the records have masks.

    Returns:
      {tokens: int32 [batch, sequence_length], length: int32 [batch]}; labelled records
      also have label: int32 [batch], and masked ones mask: int32 [batch,
      sequence_length].
    """
    import tensorflow as tf  # all other functions work without it

    full = struct.pack("<I", sequence_length)
    features = {
        TOKENS: tf.io.FixedLenFeature([], tf.string),
        LENGTH: tf.io.FixedLenFeature([], tf.string, default_value=full),
    }
    if labelled:
        features[LABEL] = tf.io.FixedLenFeature([], tf.string)
    if masked:
        features[MASK] = tf.io.FixedLenFeature([], tf.string)
    example = tf.io.parse_example(serialized, features)
    # decode_raw does not support uint32; ids are far below 2**31.
    stored = tf.uint16 if dtype.itemsize == 2 else tf.int32
    tokens = tf.cast(tf.io.decode_raw(example[TOKENS], stored), tf.int32)
    (batch,) = serialized.shape
    parsed = {TOKENS: tf.ensure_shape(tokens, [batch, sequence_length])}
    for name in (LENGTH, LABEL)[: 1 + labelled]:
        number = tf.squeeze(tf.io.decode_raw(example[name], tf.int32), axis=1)
        parsed[name] = tf.ensure_shape(number, [batch])
    if masked:
        mask = tf.cast(tf.io.decode_raw(example[MASK], tf.uint8), tf.int32)
        parsed[MASK] = tf.ensure_shape(mask, [batch, sequence_length])
    return parsed


def frame(payload: bytes) -> bytes:
    """Returns a payload as a frame of a TFRecord file.

    Source: tensorflow/core/lib/io/record_writer.h.
    """
    return _frame_start(len(payload)) + payload + _masked_crc(payload)


def unframe(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yields the payloads of a TFRecord file.

    Args:
      read: function that reads up to the given number of bytes.

    Raises:
      ValueError: a frame is incomplete, or a checksum is wrong.
    """
    while header := read(12):
        if len(header) < 12 or _masked_crc(header[:8]) != header[8:]:
            raise ValueError("its header is cut off or damaged")
        (size,) = struct.unpack("<Q", header[:8])
        payload, checksum = read(size), read(4)
        if len(payload) + len(checksum) < size + 4:
            raise ValueError("it is cut off")
        if _masked_crc(payload) != checksum:
            raise ValueError("its checksum is wrong")
        yield payload


def frame_bytes(
    sequence_length: int,
    dtype: np.dtype,
    *,
    with_length: bool = False,
    with_label: bool = False,
    with_mask: bool = False,
) -> int:
    """Returns the size of one record in a file, in bytes."""
    payload = serialize(
        np.zeros(sequence_length, dtype),
        length=0 if with_length else None,
        label=0 if with_label else None,
        mask=np.zeros(sequence_length, np.uint8) if with_mask else None,
    )
    return len(payload) + _FRAME_OVERHEAD_BYTES


def _masked_crc(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    rotated = (crc >> 15) | (crc << 17)
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)


def _feature(name: str, value: bytes) -> bytes:
    """Encodes an entry of the map Features.feature, with a bytes_list of one value."""
    return _feature_start(name, len(value)) + value


# The following prefixes depend on sizes only, which the records of a file share.


@functools.lru_cache
def _frame_start(size: int) -> bytes:
    length = struct.pack("<Q", size)
    return length + _masked_crc(length)


@functools.lru_cache
def _feature_start(name: str, size: int) -> bytes:
    value = _field_start(1, size)  # BytesList.value
    bytes_list = _field_start(1, len(value) + size) + value  # Feature.bytes_list
    feature = _field_start(2, len(bytes_list) + size) + bytes_list
    key = _field_start(1, len(name)) + name.encode()
    return _field_start(1, len(key) + len(feature) + size) + key + feature


@functools.lru_cache
def _field_start(number: int, size: int) -> bytes:
    """Returns the tag and size of a length-delimited protocol buffer field."""
    return bytes([number << 3 | 2]) + _varint(size)


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yields (number, content) of the length-delimited fields of a message.

    Raises:
      IndexError: the data has other content.
    """
    position = 0
    while position < len(data):
        number, kind = data[position] >> 3, data[position] & 7
        size = shift = 0
        while True:
            position += 1
            size |= (data[position] & 0x7F) << shift
            shift += 7
            if data[position] <= 0x7F:
                break
        start, position = position + 1, position + 1 + size
        if kind != 2 or position > len(data):
            raise IndexError("a field is incomplete or not length-delimited")
        yield number, data[start:position]


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
