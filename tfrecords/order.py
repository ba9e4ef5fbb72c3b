"""Which record comes when: seeded permutations and the reading order of an epoch.

Everything here is integer arithmetic on NumPy arrays, the same on every machine and
in every version, and everything is a pure function of its arguments.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator

import numpy as np


def permutation(size: int, *key: int) -> np.ndarray:
    """Returns a permutation of range(size) that depends on `key` alone.

    Each index is hashed with the key, and the hashes are sorted.

    Args:
      size: number of elements.
      *key: non-negative integers, such as seed and epoch.

    Returns:
      int64 [size].
    """
    hashes = hash_integers(np.arange(size), *key)
    return np.argsort(hashes, kind="stable")


def hash_integers(values: np.ndarray, *key: int) -> np.ndarray:
    """Hashes each value with a key, to uint64 of the same shape.

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
    """Splits records evenly: the first shards hold one more. int64 [num_shards]."""
    sizes = np.full(num_shards, num_records // num_shards, np.int64)
    sizes[: num_records % num_shards] += 1
    return sizes


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of the reading order: take one record of each row in turn.

    Row i reads shard `shard[i]` from record `first[i]`, then every `stride`-th,
    wrapping at the end of the shard, until it has given `count[i]` records.
    """

    shard: np.ndarray  # int64 [rows]
    first: np.ndarray  # int64 [rows]
    count: np.ndarray  # int64 [rows]
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
    """Returns how one host reads one epoch.

    The order of an epoch is a round-robin over all shards, which are permuted, and
    each read from an offset, by (seed, epoch). Where some shards hold one record
    more, a last, shorter round takes those. Over all epochs the records form one
    endless stream; the host reads those whose place in it is `host_index` modulo
    `num_hosts`. With `num_shards` a multiple of `num_hosts` it so opens only its
    part of the shards.

    Args:
      sizes: records of each shard, differing by at most one, the larger first.
      epoch: which pass over the data.
      seed: of the order.
      start: records of this epoch that were read before, by all hosts.
      host_index: this host, below `num_hosts`.
      num_hosts: how many hosts share the stream.
    """
    num_shards, total = len(sizes), int(sizes.sum())
    shards = permutation(num_shards, seed, epoch)
    offsets = hash_integers(np.arange(num_shards), seed, epoch, 1) % sizes.astype(
        np.uint64
    )
    num_rounds = total // num_shards
    whole = num_rounds * num_shards

    def phase(shards: np.ndarray, positions: np.ndarray, stop: int) -> Phase:
        # Of all positions only the host's; a shard's come `stride` rounds apart.
        owned = positions[(epoch * total + positions) % num_hosts == host_index]
        rounds = owned // num_shards
        shard = shards[owned % num_shards]
        offset = offsets.astype(np.int64)[shard]
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
    """Returns how one host reads records [start, stop) of the endless stream.

    The last phase may hold more. Arguments as in `epoch_phases`.
    """
    total = int(sizes.sum())
    found = []
    for epoch in range(start // total, (stop - 1) // total + 1):
        found += epoch_phases(
            sizes,
            epoch=epoch,
            seed=seed,
            start=max(start - epoch * total, 0),
            host_index=host_index,
            num_hosts=num_hosts,
        )
    return found


def places(sizes: np.ndarray, phases: Iterable[Phase]) -> Iterator[tuple[int, int]]:
    """Yields shard and record in the order in which phases are read."""
    for phase in phases:
        for turn in range(int(phase.count.max(initial=0))):
            for row in np.flatnonzero(phase.count > turn):
                shard = int(phase.shard[row])
                record = int(phase.first[row]) + turn * phase.stride
                yield shard, record % int(sizes[shard])
