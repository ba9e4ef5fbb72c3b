"""Tests that the reading order is a permutation that does not depend on hosts."""

import numpy as np
import pytest

from tfrecords import order


def read(sizes, phases):
    """Returns (shard, record) pairs in the order of the phases, computed by loops."""
    result = []
    for phase in phases:
        taken = np.zeros(len(phase.shard), int)
        while (taken < phase.count).any():
            for row, shard in enumerate(phase.shard):
                if taken[row] < phase.count[row]:
                    record = phase.first[row] + taken[row] * phase.stride
                    result.append((int(shard), int(record % sizes[shard])))
                    taken[row] += 1
    return result


def epoch_order(sizes, epoch, seed=3, **kwargs):
    return read(sizes, order.epoch_phases(sizes, epoch=epoch, seed=seed, **kwargs))


def test_a_permutation_has_fixed_values():
    permutation = order.permutation(10, 7, 2)
    assert sorted(permutation) == list(range(10))
    # These values are part of the format: a change would reorder existing datasets.
    assert permutation.tolist() == [3, 8, 2, 4, 9, 0, 6, 7, 1, 5]


def test_a_permutation_depends_on_each_part_of_the_key():
    orders = {
        tuple(order.permutation(20, *key)) for key in [(1, 2), (2, 1), (1,), (0,)]
    }
    assert len(orders) == 4


# Preprocessing writes no empty shards.
@pytest.mark.parametrize(
    ("num_records", "num_shards"),
    [(1, 1), *((n, shards) for n in (5, 16, 17, 23) for shards in (1, 3, 4))],
)
def test_an_epoch_holds_each_record_once(num_records, num_shards):
    sizes = order.shard_sizes(num_records, num_shards)
    everything = [(s, r) for s in range(num_shards) for r in range(sizes[s])]
    epochs = [epoch_order(sizes, epoch) for epoch in range(4)]
    for records in epochs:
        assert sorted(records) == everything
    if num_records > 5:
        assert len({tuple(records) for records in epochs}) == 4


@pytest.mark.parametrize("num_shards", [1, 4, 6])
@pytest.mark.parametrize("num_hosts", [1, 2, 3, 4, 8])
def test_hosts_read_alternate_records_of_one_stream(num_shards, num_hosts):
    sizes = order.shard_sizes(29, num_shards)
    stream = [r for epoch in range(3) for r in epoch_order(sizes, epoch)]
    for host in range(num_hosts):
        host_records = [
            record
            for epoch in range(3)
            for record in epoch_order(
                sizes, epoch, host_index=host, num_hosts=num_hosts
            )
        ]
        assert host_records == stream[host::num_hosts]


def test_a_host_opens_only_its_own_shards():
    sizes = order.shard_sizes(64, 8)
    shards = [
        {s for s, _ in epoch_order(sizes, 1, host_index=host, num_hosts=4)}
        for host in range(4)
    ]
    assert all(len(host_shards) == 2 for host_shards in shards)
    assert set.union(*shards) == set(range(8))


@pytest.mark.parametrize("start", range(30))
def test_starting_at_a_record_equals_skipping_the_ones_before(start):
    sizes = order.shard_sizes(29, 4)
    for hosts in (1, 2, 3):
        for host in range(hosts):
            kwargs = {"host_index": host, "num_hosts": hosts}
            whole = epoch_order(sizes, 2, **kwargs)
            # Records before `start` that belong to this host.
            before = sum((2 * 29 + p) % hosts == host for p in range(start))
            assert epoch_order(sizes, 2, start=start, **kwargs) == whole[before:]


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (20, 35), (29, 30), (3, 90)])
def test_locations_are_in_reading_order(start, stop):
    sizes = order.shard_sizes(29, 4)
    stream = [r for epoch in range(4) for r in epoch_order(sizes, epoch)]
    phases = order.phases(sizes, start, stop, seed=3)
    locations = list(order.locations(sizes, phases))
    assert locations[: stop - start] == stream[start:stop]
