"""The record against TensorFlow's own reader, writer and protocol buffers."""

import numpy as np
import pytest
import tensorflow as tf

from tfrecords import schema, writer


@pytest.mark.parametrize(
    ("vocabulary_size", "name"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4")]
)
def test_dtype_holds_the_largest_id(vocabulary_size, name):
    assert schema.token_dtype(vocabulary_size) == np.dtype(name)


@pytest.mark.parametrize("sequence_length", [2, 60, 64, 1024, 20_000])
def test_serializes_as_protocol_buffers_do(sequence_length):
    tokens = np.arange(sequence_length, dtype="<u2")
    example = tf.train.Example()
    example.ParseFromString(schema.serialize(tokens, length=sequence_length - 1))
    assert set(example.features.feature) == {"tokens", "length"}
    (value,) = example.features.feature["tokens"].bytes_list.value
    assert value == tokens.tobytes()
    (length,) = example.features.feature["length"].bytes_list.value
    assert int.from_bytes(length, "little") == sequence_length - 1


def test_a_full_record_has_one_feature():
    example = tf.train.Example()
    example.ParseFromString(schema.serialize(np.arange(8, dtype="<u2")))
    assert list(example.features.feature) == ["tokens"]


def test_a_shard_is_what_tensorflow_would_write(tmp_path):
    payloads = [b"", b"a", bytes(range(256)) * 9]
    shard = writer.write_shard(str(tmp_path / "ours"), payloads)
    with tf.io.TFRecordWriter(str(tmp_path / "theirs")) as theirs:
        for payload in payloads:
            theirs.write(payload)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert (shard.num_records, shard.num_bytes) == (
        3,
        (tmp_path / "theirs").stat().st_size,
    )


def test_a_shard_that_fails_does_not_appear(tmp_path):
    def payloads():
        yield b"one"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        writer.write_shard(str(tmp_path / "shard"), payloads())
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_parse_gives_back_tokens_and_length(dtype):
    rows = np.array([[1, 2, 3, 4], [65_535, 0, 7, 0]], dtype)
    serialized = [schema.serialize(rows[0]), schema.serialize(rows[1], length=3)]
    parsed = schema.parse(
        tf.constant(serialized), sequence_length=4, dtype=np.dtype(dtype)
    )
    np.testing.assert_array_equal(parsed["tokens"], rows)
    np.testing.assert_array_equal(parsed["length"], [4, 3])


@pytest.mark.parametrize("padded", [False, True])
def test_every_record_of_a_kind_has_the_same_size(padded):
    dtype = np.dtype("<u2")
    for fill in (0, 65_535):
        payload = schema.serialize(np.full(300, fill, dtype), 299 if padded else None)
        expected = schema.frame_bytes(300, dtype, padded=padded)
        assert len(schema.frame(payload)) == expected
