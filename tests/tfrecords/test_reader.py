"""Tests that a step's batch depends on dataset, seed, batch size and step alone."""

import dataclasses
import pathlib
import resource

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import DataError, RunError
from tests.conftest import write_dataset
from tfrecords import order, reader, schema
from tfrecords.windows import Windows


def global_batches(dataset, *, num_steps, start_step=0, num_hosts=1, replicas=1):
    """Returns the records of each step over all hosts, as sorted lists of tuples."""
    folder, manifest = dataset
    batch_size = 12 // num_hosts // replicas
    steps = [[] for _ in range(num_steps - start_step)]
    for host in range(num_hosts):
        batches = reader.training_batches(
            str(folder),
            manifest,
            global_batch_size=12,
            batch_size=batch_size,
            start_step=start_step,
            num_steps=num_steps,
            seed=5,
            host_index=host,
            num_hosts=num_hosts,
        )
        elements = list(batches.as_numpy_iterator())
        rows = np.concatenate([element["row"] for element in elements])
        expected = np.arange(host, 12, num_hosts)
        np.testing.assert_array_equal(rows, np.tile(expected, len(steps)))
        assert len(elements) == len(steps) * replicas
        for index, element in enumerate(elements):
            assert element["tokens"].shape == (batch_size, 8)
            rows = zip(element["tokens"], element["length"], strict=True)
            steps[index // replicas] += [(*row, length) for row, length in rows]
    return [sorted(step) for step in steps]


def test_an_epoch_holds_each_record_once(dataset, tokens):
    steps = global_batches(dataset, num_steps=5)  # 60 records: two epochs of 30
    records = [record for step in steps for record in step]
    padded = np.pad(tokens, (0, 5)).reshape(30, 8)
    lengths = [8] * 29 + [3]
    expected = [(*row, n) for row, n in zip(padded.tolist(), lengths, strict=True)]
    assert sorted(records) == sorted(expected * 2)


@pytest.mark.parametrize("num_hosts", [1, 2, 3])
@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("start_step", [0, 1, 3, 6])
def test_batches_do_not_depend_on_hosts_replicas_or_interruptions(
    dataset, num_hosts, replicas, start_step
):
    whole = global_batches(dataset, num_steps=7)
    resumed = global_batches(
        dataset,
        num_steps=7,
        start_step=start_step,
        num_hosts=num_hosts,
        replicas=replicas,
    )
    assert resumed == whole[start_step:]


def test_more_hosts_than_shards_is_refused(dataset):
    with pytest.raises(DataError, match="num_shards=4"):
        global_batches(dataset, num_steps=1, num_hosts=4)


@pytest.mark.parametrize("num_hosts", [1, 2])
@pytest.mark.parametrize("batch_size", [2, 4])
def test_evaluation_reads_every_record_once_in_order(
    dataset, tokens, num_hosts, batch_size
):
    folder, manifest = dataset
    global_batch_size = batch_size * num_hosts
    cut = {"split": "validation", "context_length": 8, "stride": 8}
    windows = Windows(str(folder), manifest, **cut)
    hosts = [
        windows.batches(
            global_batch_size=global_batch_size,
            batch_size=batch_size,
            host_index=host,
            num_hosts=num_hosts,
        )
        for host in range(num_hosts)
    ]
    columns = [list(host.unbatch().as_numpy_iterator()) for host in hosts]
    records = [record for row in zip(*columns, strict=True) for record in row]
    filler = -11 % global_batch_size  # 11 records, padded to whole batches
    assert [r["length"] for r in records] == [8] * 10 + [3] + [0] * filler
    real = np.concatenate([r["tokens"][: r["length"]] for r in records])
    np.testing.assert_array_equal(real, tokens[:83])


def test_an_id_outside_the_vocabulary_raises_an_error(tmp_path):
    manifest = write_dataset(
        tmp_path,
        train_tokens=np.array([1, 2, 97, 3]),
        validation_tokens=np.array([1, 2]),
        sequence_length=4,
        num_shards=1,
    )
    batches = reader.training_batches(
        str(tmp_path),
        manifest,
        global_batch_size=1,
        batch_size=1,
        start_step=0,
        num_steps=1,
        seed=0,
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside the vocabulary"):
        list(batches)


@pytest.fixture
def shards(request, tmp_path):
    """45 records in 7 shards: the folder, the manifest, each shard's tokens."""
    rows = np.arange(45 * 8, dtype=np.uint16).reshape(45, 8) % 97
    manifest = write_dataset(
        tmp_path,
        train_tokens=rows.reshape(-1)[:-3],  # the last record is padded, and longer
        validation_tokens=np.array([1, 2]),
        sequence_length=8,
        num_shards=7,
    )
    manifest = dataclasses.replace(manifest, mode=getattr(request, "param", "packed"))
    if manifest.mode != "packed":
        for part, shard in zip(
            _split(rows), manifest.split("train").shards, strict=True
        ):
            payloads = [
                schema.serialize(
                    row,
                    length=8,
                    label=1 if manifest.labelled else None,
                    mask=np.ones(8, np.uint8) if manifest.masked else None,
                )
                for row in part
            ]
            (tmp_path / shard.name).write_bytes(b"".join(map(schema.frame, payloads)))
    rows[-1, -3:] *= manifest.mode != "packed"
    return str(tmp_path), manifest, _split(rows)


def _split(rows):
    return np.split(rows, np.cumsum(order.shard_sizes(45, 7))[:-1])


@pytest.mark.parametrize(
    ("shards", "num_hosts", "start_step"),
    [
        *(("packed", 1, 1), ("packed", 2, 2), ("packed", 4, 1), ("packed", 7, 0)),
        *(("document", 1, 2), ("labelled", 1, 0), ("completion", 2, 1)),
    ],
    indirect=["shards"],
)
def test_records_are_those_of_the_order_from_any_step(shards, num_hosts, start_step):
    """The judge counts through the shards in memory; the steps cross two epochs."""
    folder, manifest, tokens = shards
    size, num_steps = 28, 5
    sizes = np.array([len(part) for part in tokens])
    start, stop = start_step * size, num_steps * size
    places = order.locations(sizes, order.phases(sizes, start, stop, seed=5))
    stream = [tokens[shard][record] for shard, record in places][: stop - start]
    for host in range(num_hosts):
        batches = reader.training_batches(
            *(folder, manifest),
            global_batch_size=size,
            batch_size=size // num_hosts,
            start_step=start_step,
            num_steps=num_steps,
            seed=5,
            host_index=host,
            num_hosts=num_hosts,
        )
        records = np.concatenate([batch["tokens"] for batch in batches])
        np.testing.assert_array_equal(records, stream[host::num_hosts])


def test_a_resume_reads_nothing_of_what_is_before_it(shards):
    """The record before the first of each shard is damaged."""
    folder, manifest, tokens = shards
    sizes = np.array([len(part) for part in tokens])
    (phase, *_) = order.epoch_phases(sizes, epoch=0, seed=5, start=14)
    names = [shard.name for shard in manifest.split("train").shards]
    for shard, first in zip(phase.shard, phase.first, strict=True):
        path = pathlib.Path(folder, names[shard])
        content = bytearray(path.read_bytes())
        content[max(first - 1, 0) * manifest.record_bytes] ^= first > 0
        path.write_bytes(content)
    settings = {"global_batch_size": 7, "batch_size": 7, "seed": 5, "start_step": 2}
    (batch,) = reader.training_batches(folder, manifest, num_steps=3, **settings)
    expected = [tokens[s][r] for s, r in zip(phase.shard, phase.first, strict=True)]
    np.testing.assert_array_equal(batch["tokens"], expected)
    with pytest.raises(tf.errors.DataLossError):
        list(reader.training_batches(folder, manifest, num_steps=8, **settings))


def test_as_many_files_may_be_open_as_a_host_has_shards(shards, monkeypatch):
    folder, manifest, _ = shards
    settings = {"global_batch_size": 7, "batch_size": 7, "seed": 5, "start_step": 0}
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        reader.training_batches(folder, manifest, num_steps=1, **settings)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (7 + 512, limits[1])
        monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 70))
        with pytest.raises(RunError, match=r"at least 71, .* 7 shards\. Received: 70"):
            reader.training_batches(folder, manifest, num_steps=1, **settings)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
