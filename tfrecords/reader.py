"""Builds the `tf.data` pipeline of training batches.

The global batch of step s is records [s * B, (s + 1) * B) of one endless stream, which
`order.epoch_phases` defines by (dataset, seed) alone. It depends neither on the number
of hosts or replicas nor on interruptions: a run that resumes at step s starts reading
each shard at its position for that step.
"""

import contextlib
import itertools
import resource
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from configs.errors import DataError, RunError
from tfrecords import order, schema, verify
from tfrecords.manifest import Manifest, Split
from tfrecords.storage import files
from tfrecords.tensorflow_errors import is_about_file, root_cause

# A shard that is open holds a buffer in memory, which is also what is asked of a bucket
# at once. All shards of a host are open.
LARGEST_BUFFER_BYTES = 2 << 20
_BUFFERS_BYTES = 128 << 20
# They wait for a disk or a bucket: TensorFlow would take one for each core, up to 16.
_PARALLEL_READS = 16
# Open files that the rest of the program needs at least, and those that suffice.
_FEWEST_OPEN_FILES, _MANY_OPEN_FILES = 64, 512


def training_batches(
    data_dir: str,
    manifest: Manifest,
    *,
    global_batch_size: int,
    batch_size: int,
    start_step: int,
    num_steps: int,
    seed: int,
    host_index: int = 0,
    num_hosts: int = 1,
) -> tf.data.Dataset:
    """Returns the batches of one host for steps [start_step, num_steps).

    Args:
      data_dir: folder of the dataset.
      manifest: its manifest.
      global_batch_size: records of a step over all hosts, a multiple of
        `num_hosts * batch_size`.
      batch_size: records of one element, which one replica uses for one step.
      start_step: steps completed before.
      num_steps: steps of the whole run.
      seed: seed of the order of each epoch.
      host_index: index of this host.
      num_hosts: hosts that share each global batch.

    Returns:
      Elements {tokens: int32 [batch_size, sequence_length], length: int32
      [batch_size], row: int32 [batch_size]}, where `row` is each record's index in the
      global batch; labelled records also have label: int32 [batch_size], the place of
      their label among the dataset's. Padding is at
      the end of `tokens`, even if it is stored on the left.

    Raises:
      DataError: the dataset has fewer shards than hosts.
    """
    start, stop = start_step * global_batch_size, num_steps * global_batch_size
    host = {"host_index": host_index, "num_hosts": num_hosts}
    batches = (
        _host_records(data_dir, manifest, start, stop, seed=seed, **host)
        .batch(batch_size, drop_remainder=True)
        .map(lambda r: parse(r, manifest), num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options())
    )
    # `num_hosts` divides the global batch, so the rows are the same in each step.
    indices = np.arange(host_index, global_batch_size, num_hosts, dtype=np.int32)
    rows = tf.data.Dataset.from_tensor_slices(indices.reshape(-1, batch_size)).repeat()
    return tf.data.Dataset.zip(batches, rows).map(lambda b, row: {**b, "row": row})


def batch_records(
    manifest: Manifest, *, step: int, global_batch_size: int, seed: int
) -> list[tuple[str, int]]:
    """Returns (shard name, index in the shard) of each record of a global batch."""
    split = manifest.split("train")
    first = step * global_batch_size
    sizes = _sizes(split)
    phases = order.phases(sizes, first, first + global_batch_size, seed=seed)
    locations = itertools.islice(order.locations(sizes, phases), global_batch_size)
    return [(split.shards[shard].name, record) for shard, record in locations]


def paths(data_dir: str, split: Split) -> list[str]:
    """Returns the paths of a split's shards, in order."""
    return [files.join(data_dir, shard.name) for shard in split.shards]


@contextlib.contextmanager
def translate_data_loss_errors(data_dir: str, manifest: Manifest) -> Iterator[None]:
    """Replaces TensorFlow's errors about unreadable data by one that names the shard.

    Raises:
      DataError: the dataset differs from its manifest, or is no longer accessible.
    """
    try:
        yield
    except (
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnauthenticatedError,
    ) as error:
        if not is_about_file(error):
            raise
        folders = (
            data_dir if data_dir.rstrip("/") in str(error) else "The folders of a run"
        )
        raise DataError(
            f"{folders} must exist and be accessible to this account during the whole "
            f"run. Received: {root_cause(error)}\nRestore access; the same command "
            "continues from the last checkpoint."
        ) from error
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        problems = [
            problem
            for split in manifest.splits
            for problem in verify.examine(data_dir, manifest, split)[1]
        ]
        if not problems:
            raise
        raise DataError("\n".join([*problems, verify.REMEDY])) from error


def parse(
    serialized: tf.Tensor, manifest: Manifest, labels: Sequence[str] = ()
) -> dict[str, tf.Tensor]:
    """Parses a batch of records and moves padding to the end.

    Args:
      serialized: string [batch].
      manifest: manifest of the dataset.
      labels: names in the order of a model's classes; empty: the dataset's own.

    Returns:
      {tokens: int32 [batch, sequence_length], length: int32 [batch]}; labelled records
      also have label: int32 [batch], the place of their label in `labels`; -1 of one
      that is not there.

    Raises:
      InvalidArgumentError: at run time, if a token id is outside the vocabulary.
    """
    batch = schema.parse(
        serialized,
        sequence_length=manifest.sequence_length,
        dtype=manifest.dtype,
        labelled=manifest.labelled,
        masked=manifest.masked,
    )
    if manifest.padding_side == "left":
        # With the padding after them, real tokens of a causal model never attend to it
        # and start at position 0.
        source = tf.range(manifest.sequence_length) - batch[schema.LENGTH][:, None]
        source %= manifest.sequence_length
        for name in {schema.TOKENS, schema.MASK} & batch.keys():
            batch[name] = tf.gather(batch[name], source, batch_dims=1)
    if manifest.labelled and manifest.labels:
        stored = [*map(manifest.stored_label, labels or manifest.labels)]
        batch[schema.LABEL] = _places(np.array(stored), batch[schema.LABEL])
    # On a TPU, a gather with an id outside the vocabulary raises no error.
    in_vocabulary = tf.debugging.assert_less(
        batch[schema.TOKENS],
        manifest.vocabulary_size,
        message="A record holds a token id outside the vocabulary.",
    )
    with tf.control_dependencies([in_vocabulary]):
        return {name: tf.identity(value) for name, value in batch.items()}


def _places(values: np.ndarray, wanted: tf.Tensor) -> tf.Tensor:
    """Returns where each wanted value is in `values`, int32 [B]; -1: nowhere.

    Args:
      values: int64 [N], each once.
      wanted: int32 [B].
    """
    order, wanted = np.argsort(values), tf.cast(wanted, tf.int64)
    index = tf.searchsorted(values[order], wanted)
    index = tf.minimum(index, len(values) - 1)
    is_there = tf.gather(values[order], index) == wanted
    return tf.where(is_there, tf.gather(order.astype(np.int32), index), -1)


def options() -> tf.data.Options:
    """Returns the options of all datasets: deterministic, no automatic sharding."""
    result = tf.data.Options()
    result.deterministic = True
    # The datasets already select the records of this host.
    result.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return result


def _host_records(
    data_dir: str,
    manifest: Manifest,
    start: int,
    stop: int,
    *,
    seed: int,
    host_index: int,
    num_hosts: int,
) -> tf.data.Dataset:
    """Returns every `num_hosts`-th record of [start, stop) of the endless stream."""
    split = manifest.split("train")
    if len(split.shards) < num_hosts:
        raise DataError(
            "The dataset must have at least one shard for each host. Received: "
            f"{len(split.shards)} shards for {num_hosts} hosts. Preprocess with "
            f"`--config.data.num_shards={num_hosts}` or a multiple of it."
        )
    phases = order.phases(
        _sizes(split),
        start,
        stop,
        seed=seed,
        host_index=host_index,
        num_hosts=num_hosts,
    )
    if not files.is_remote(data_dir):
        _allow_open_files(max(len(phase.shard) for phase in phases))
    records = _read_phases(paths(data_dir, split), phases, manifest.record_bytes)
    return records.take((stop - start) // num_hosts)


def _allow_open_files(num_shards: int) -> None:
    """Raises this process's own limit of open files, where it is too low.

    Raises:
      RunError: the system's limit is too low.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if n == resource.RLIM_INFINITY else n for n in limits)
    needed = num_shards + _FEWEST_OPEN_FILES
    if hard < needed:
        raise RunError(
            "A host opens all its shards at once: its limit of open files must be at "
            f"least {needed}, for {num_shards} shards. Received: {hard}. Raise the "
            "limit, or preprocess with a smaller `--config.data.num_shards`."
        )
    wanted = min(num_shards + _MANY_OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, limits[1]))


def _sizes(split: Split) -> np.ndarray:
    return np.array([shard.num_records for shard in split.shards])


def _read_phases(
    paths: list[str], phases: list[order.Phase], record_bytes: int
) -> tf.data.Dataset:
    """Reads phases one after the other, and the rows of each in round-robin order.

    A row starts at the byte of its first record: only the last record of a split can
    have another size than `record_bytes`.
    """
    num_rows = max(len(phase.shard) for phase in phases)
    buffer_bytes = min(LARGEST_BUFFER_BYTES, _BUFFERS_BYTES // num_rows)

    def table(field: str) -> np.ndarray:
        # All phases get the same number of rows; an added row has count 0.
        values = [getattr(phase, field) for phase in phases]
        return np.stack([np.pad(v, (0, num_rows - len(v))) for v in values])

    all_paths = tf.constant(paths)
    stride = phases[0].stride

    def read_row(
        shard: tf.Tensor, first: tf.Tensor, count: tf.Tensor
    ) -> tf.data.Dataset:
        rotated = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.repeat(all_paths[shard], 2),
            compression_type="",
            buffer_size=buffer_bytes,
            byte_offsets=tf.stack([first * record_bytes, 0]),
        )
        records = tf.data.experimental.from_variant(
            rotated, tf.TensorSpec([], tf.string)
        )
        return records.shard(stride, 0).take(count)

    def read_phase(*rows: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(rows).interleave(
            read_row,
            cycle_length=num_rows,
            block_length=1,
            num_parallel_calls=min(num_rows, _PARALLEL_READS),
            deterministic=True,
        )

    tables = (table("shard"), table("first"), table("count"))
    return tf.data.Dataset.from_tensor_slices(tables).flat_map(read_phase)
