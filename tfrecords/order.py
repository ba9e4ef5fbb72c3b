"""Defines the order in which records are read: seeded permutations and epochs.

All functions are pure and use integer arithmetic on NumPy arrays only, so the results
are the same on every machine and in every version.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """Returns a permutation of range(size) that depends on `key` alone.

    It sorts the indices by their hashes with the key.

    Args:
      size: number of elements.
      *key: non-negative integers, such as seed and epoch.

    Returns:
      int64 [size].
    """
    hashes = hash_integers(np.arange(size), *key)
    return np.argsort(hashes, kind="stable")


def hash_integers(values: np.ndarray, *key: int) -> np.ndarray:
    """Hashes each value with a key.

    Args:
      values: non-negative integers of any shape.
      *key: non-negative integers, such as seed and epoch.

    Returns:
      uint64, of the shape of `values`.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators"
    (2014), the finalizer of SplitMix64, chained over the parts of the key.
    """
    mixed = np.asarray(values).astype(np.uint64)
    with np.errstate(over="ignore"):
        for part in (*key, len(key)):
            mixed = mixed + np.uint64(0x9E3779B97F4A7C15) * np.uint64(part + 1)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def shard_sizes(num_records: int, num_shards: int) -> np.ndarray:
    """Splits records evenly among shards; the first shards may hold one record more.

    Returns:
      int64 [num_shards].
    """
    sizes = np.full(num_shards, num_records // num_shards, np.int64)
    sizes[: num_records % num_shards] += 1
    return sizes


@dataclasses.dataclass(frozen=True)
class Phase:
    """Describes a part of the reading order: a round-robin over rows.

    Row i reads `count[i]` records of shard `shard[i]`: record `first[i]` and then every
    `stride`-th, wrapping around at the end of the shard.

    Attributes:
      shard: int64 [rows].
      first: int64 [rows].
      count: int64 [rows].
      stride: records from one read to the next.
    """

    shard: np.ndarray
    first: np.ndarray
    count: np.ndarray
    stride: int


def epoch_phases(
    sizes: np.ndarray,
    *,
    epoch: int,
    seed: int,
    start: int = 0,
    host_index: int = 0,
    num_hosts: int = 1,
) -> list[Phase]:
    """Returns the order in which one host reads one epoch.

    An epoch is a round-robin over all shards. (seed, epoch) determines the permutation
    of the shards and the record at which each starts. If some shards hold one record
    more, a last, shorter round reads those. The epochs form one endless stream, of
    which a host reads the positions that are `host_index` modulo `num_hosts`. If
    `num_hosts` divides the number of shards, each host opens only its own shards.

    Args:
      sizes: int64 [num_shards], records of each shard, as `shard_sizes` returns them.
      epoch: index of the pass over the data.
      seed: seed of the order.
      start: records of this epoch that all hosts together have read before.
      host_index: index of this host.
      num_hosts: number of hosts that share the stream.
    """
    num_shards, total = len(sizes), int(sizes.sum())
    shards = permutation(num_shards, seed, epoch)
    hashes = hash_integers(np.arange(num_shards), seed, epoch, 1)
    offsets = (hashes % sizes.astype(np.uint64)).astype(np.int64)
    num_rounds = total // num_shards
    whole = num_rounds * num_shards

    def phase(shards: np.ndarray, positions: np.ndarray, stop: int) -> Phase:
        # Positions of this host. Those in the same shard are `stride` rounds apart.
        owned = positions[(epoch * total + positions) % num_hosts == host_index]
        rounds = owned // num_shards
        shard = shards[owned % num_shards]
        offset = offsets[shard]
        count = -(-(stop - owned) // (num_shards * stride))
        return Phase(shard, (offset + rounds) % sizes[shard], count, stride)

    stride = num_hosts // math.gcd(num_shards, num_hosts)
    window = np.arange(start, min(start + stride * num_shards, whole))
    phases = [phase(shards, window, whole)]
    longer = shards[shards < total - whole]
    last_round = np.arange(max(start, whole), total)
    if len(last_round):
        # Position whole + k is the k-th of the longer shards, in permuted order.
        phases.append(phase(longer, last_round, total))
    return phases


def phases(
    sizes: np.ndarray,
    start: int,
    stop: int,
    *,
    seed: int,
    host_index: int = 0,
    num_hosts: int = 1,
) -> list[Phase]:
    """Returns the order in which one host reads positions [start, stop) of the stream.

    The last phase may continue after `stop`, to the end of its epoch. See
    `epoch_phases` for the other arguments.
    """
    total = int(sizes.sum())
    result = []
    for epoch in range(start // total, (stop - 1) // total + 1):
        result += epoch_phases(
            sizes,
            epoch=epoch,
            seed=seed,
            start=max(start - epoch * total, 0),
            host_index=host_index,
            num_hosts=num_hosts,
        )
    return result


def locations(sizes: np.ndarray, phases: Iterable[Phase]) -> Iterator[tuple[int, int]]:
    """Yields (shard, index in the shard) of each record of phases, in reading order."""
    for phase in phases:
        for turn in range(int(phase.count.max(initial=0))):
            for row in np.flatnonzero(phase.count > turn):
                shard = int(phase.shard[row])
                record = int(phase.first[row]) + turn * phase.stride
                yield shard, record % int(sizes[shard])
