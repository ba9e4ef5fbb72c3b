"""A stream of tokens -> records: cases by hand, and properties."""

import numpy as np
import pytest

from data_pipeline.records import packing
from tfrecords import manifest


def gather_all(lengths, sequence_length, stride):
    stream = np.arange(sum(lengths))
    ends = np.cumsum(lengths)
    files = np.split(stream, ends[:-1])
    starts = [0, *ends[:-1].tolist()]
    count = manifest.num_windows(len(stream), sequence_length, stride)

    def read(file, offset, size):
        return files[file][offset : offset + size]

    places = [stride * record for record in range(count)]
    return [packing.gather(read, starts, p, sequence_length) for p in places]


@pytest.mark.parametrize(
    "lengths", [[10], [1] * 11, [3, 4, 5], [7, 1, 1, 20], [4, 4, 4]]
)
@pytest.mark.parametrize("sequence_length", [2, 4, 5, 40])
def test_records_are_the_stream_cut_in_pieces(lengths, sequence_length):
    records = gather_all(lengths, sequence_length, sequence_length)
    assert np.concatenate(records).tolist() == list(range(sum(lengths)))
    assert all(len(record) == sequence_length for record in records[:-1])
    assert 0 < len(records[-1]) <= sequence_length


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 23])
def test_windows_overlap_by_the_stride_and_reach_the_end(length, stride):
    records = gather_all([length], 5, stride)
    assert {token for record in records for token in record} == set(range(length))
    assert [record[0] for record in records] == list(range(len(records) * stride))[
        ::stride
    ]
    assert all(len(record) == 5 for record in records[:-1])
    # One window fewer would not reach the end.
    assert len(records) == 1 or (len(records) - 2) * stride + 5 < length


def test_stored_order_is_a_permutation_with_the_padded_record_last():
    for count in (1, 2, 50):
        stored = packing.stored_order(count, seed=3, shuffle=True)
        assert sorted(stored) == list(range(count))
        assert stored[-1] == count - 1
    shuffled = packing.stored_order(50, seed=3, shuffle=True).tolist()
    assert shuffled != list(range(50))
    assert shuffled != packing.stored_order(50, seed=4, shuffle=True).tolist()
    assert packing.stored_order(5, seed=3, shuffle=False).tolist() == [0, 1, 2, 3, 4]
