"""Streams of tokens -> records, by hand and as a property."""

import numpy as np
import pytest

from data_pipeline import packing


def gather_all(lengths, sequence_length):
    stream = np.arange(sum(lengths))
    ends = np.cumsum(lengths)
    files = np.split(stream, ends[:-1])
    starts = np.concatenate([[0], ends[:-1]])
    count = packing.num_records(len(stream), sequence_length)

    def read(file, offset, size):
        return files[file][offset : offset + size]

    return [packing.gather(read, starts, r, sequence_length) for r in range(count)]


@pytest.mark.parametrize(
    "lengths", [[10], [1] * 11, [3, 4, 5], [7, 1, 1, 20], [4, 4, 4]]
)
@pytest.mark.parametrize("sequence_length", [2, 4, 5, 40])
def test_records_are_the_stream_cut_in_pieces(lengths, sequence_length):
    records = gather_all(lengths, sequence_length)
    assert np.concatenate(records).tolist() == list(range(sum(lengths)))
    assert all(len(record) == sequence_length for record in records[:-1])
    assert 0 < len(records[-1]) <= sequence_length


def test_stored_order_is_a_permutation_with_the_padded_record_last():
    for count in (1, 2, 50):
        found = packing.stored_order(count, seed=3, shuffle=True)
        assert sorted(found) == list(range(count))
        assert found[-1] == count - 1
    shuffled = packing.stored_order(50, seed=3, shuffle=True).tolist()
    assert shuffled != list(range(50))
    assert shuffled != packing.stored_order(50, seed=4, shuffle=True).tolist()
    assert packing.stored_order(5, seed=3, shuffle=False).tolist() == [0, 1, 2, 3, 4]
