"""Compares records with TensorFlow's reader, writer and protocol buffers."""

import io

import numpy as np
import pytest
import tensorflow as tf

from tfrecords import schema, writer


@pytest.mark.parametrize(
    ("vocabulary_size", "name"), [(257, "<u2"), (65_536, "<u2"), (65_537, "<u4")]
)
def test_the_dtype_holds_the_largest_id(vocabulary_size, name):
    assert schema.token_dtype(vocabulary_size) == np.dtype(name)


@pytest.mark.parametrize("sequence_length", [2, 60, 64, 1024, 20_000])
def test_protocol_buffers_parse_a_serialized_record(sequence_length):
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


def test_a_shard_equals_the_one_that_tensorflow_writes(tmp_path):
    payloads = [b"", b"a", bytes(range(256)) * 9]
    shard = writer.write_shard(str(tmp_path / "product"), payloads)
    with tf.io.TFRecordWriter(str(tmp_path / "tensorflow")) as tensorflow_writer:
        for payload in payloads:
            tensorflow_writer.write(payload)
    assert (tmp_path / "product").read_bytes() == (tmp_path / "tensorflow").read_bytes()
    assert (shard.num_records, shard.num_bytes) == (
        3,
        (tmp_path / "tensorflow").stat().st_size,
    )


def test_a_failed_shard_leaves_no_file(tmp_path):
    def payloads():
        yield b"one"
        raise RuntimeError("the disk is full")

    with pytest.raises(RuntimeError):
        writer.write_shard(str(tmp_path / "shard"), payloads())
    assert not (tmp_path / "shard").exists()


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_parse_restores_tokens_and_length(dtype):
    rows = np.array([[1, 2, 3, 4], [65_535, 0, 7, 0]], dtype)
    serialized = [schema.serialize(rows[0]), schema.serialize(rows[1], length=3)]
    parsed = schema.parse(
        tf.constant(serialized), sequence_length=4, dtype=np.dtype(dtype)
    )
    np.testing.assert_array_equal(parsed["tokens"], rows)
    np.testing.assert_array_equal(parsed["length"], [4, 3])


@pytest.mark.parametrize(
    ("length", "label"), [(None, None), (299, None), (5, -7), (0, 2**31 - 1)]
)
def test_a_record_is_restored_and_has_the_size_of_its_kind(length, label):
    dtype = np.dtype("<u2")
    for fill in (0, 65_535):
        payload = schema.serialize(np.full(300, fill, dtype), length, label)
        expected = schema.frame_bytes(
            300, dtype, with_length=length is not None, with_label=label is not None
        )
        framed = schema.frame(payload)
        assert len(framed) == expected
        assert list(schema.unframe(io.BytesIO(framed).read)) == [payload]
        tokens, *rest = schema.deserialize(payload, dtype)
        assert (tokens == fill).all()
        assert rest == [length, label]
        parsed = schema.parse(
            tf.constant([payload]),
            sequence_length=300,
            dtype=dtype,
            labelled=label is not None,
        )
        assert parsed["length"].numpy() == [300 if length is None else length]
        if label is not None:
            assert parsed["label"].numpy() == [label]


@pytest.mark.parametrize("payload", [b"", b"text", b"\x0a\x05ab", b"\x0a\xff"])
def test_bytes_that_are_not_a_record_are_refused(payload):
    with pytest.raises(ValueError, match="not a record"):
        schema.deserialize(payload, np.dtype("<u2"))
