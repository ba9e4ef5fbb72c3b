"""From a manifest to `tf.data`: which records this host reads at this step.

The global batch of step s is records [s * B, (s + 1) * B) of one endless stream, which
`order.epoch_phases` defines from (dataset, seed) alone. So it does not depend on how
many hosts or replicas read it, nor on where a run was interrupted: a run that continues
at step s opens each shard where it stands then.
"""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from configs.errors import DataError
from tfrecords import order, schema, verify
from tfrecords.manifest import Manifest, Split
from tfrecords.storage import files


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
    """Returns the batches that one host reads for steps [start_step, num_steps).

    Args:
      data_dir: folder of the dataset.
      manifest: its manifest.
      global_batch_size: records of a step over all hosts, a multiple of
        `num_hosts * batch_size`.
      batch_size: records of one element: what one replica gets for one step. A step
        takes `global_batch_size / num_hosts / batch_size` elements.
      start_step: steps made before.
      num_steps: steps of the whole run.
      seed: of the order of the epochs.
      host_index: this host, below `num_hosts`.
      num_hosts: hosts that share each global batch.

    Returns:
      Elements {tokens: int32 [batch_size, sequence_length], length: int32
      [batch_size], row: int32 [batch_size]}, the last being each record's place in the
      global batch; and label: int32 [batch_size] of labelled records. Padding stands at
      the end, on whatever side it is stored.
    """
    split = manifest.split("train")
    if len(split.shards) < num_hosts:
        raise DataError(
            "The dataset must have at least one shard for each host. Received: "
            f"{len(split.shards)} shards for {num_hosts} hosts. Preprocess with "
            f"`--config.data.num_shards={num_hosts}` or a multiple of it."
        )
    phases = order.phases(
        _sizes(split),
        start_step * global_batch_size,
        num_steps * global_batch_size,
        seed=seed,
        host_index=host_index,
        num_hosts=num_hosts,
    )
    records = _read_phases(paths(data_dir, split), phases)
    records = records.take((num_steps - start_step) * global_batch_size // num_hosts)
    batches = (
        records.batch(batch_size, drop_remainder=True)
        .map(
            lambda serialized: parse(serialized, manifest),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE)
        .with_options(options())
    )
    # The host's records are those whose place in the stream is its index modulo the
    # number of hosts, which divides the global batch.
    places = np.arange(host_index, global_batch_size, num_hosts, dtype=np.int32)
    rows = tf.data.Dataset.from_tensor_slices(places.reshape(-1, batch_size)).repeat()
    return tf.data.Dataset.zip(batches, rows).map(
        lambda batch, row: {**batch, "row": row}
    )


def batch_records(
    manifest: Manifest, *, step: int, global_batch_size: int, seed: int
) -> list[tuple[str, int]]:
    """Returns shard and number in it of each record of a step's global batch."""
    split = manifest.split("train")
    first = step * global_batch_size
    sizes = _sizes(split)
    phases = order.phases(sizes, first, first + global_batch_size, seed=seed)
    places = itertools.islice(order.places(sizes, phases), global_batch_size)
    return [(split.shards[shard].name, record) for shard, record in places]


def paths(data_dir: str, split: Split) -> list[str]:
    """Returns the shards' files, in order."""
    return [files.join(data_dir, shard.name) for shard in split.shards]


@contextlib.contextmanager
def naming_damage(data_dir: str, manifest: Manifest) -> Iterator[None]:
    """Says which shard and record is damaged where reading them fails.

    Raises:
      DataError: in place of TensorFlow's error, when the dataset is not as its
        manifest says, or may not be read any more.
    """
    try:
        yield
    except (
        tf.errors.NotFoundError,
        tf.errors.PermissionDeniedError,
        tf.errors.UnauthenticatedError,
    ) as error:
        folder = data_dir if data_dir.rstrip("/") in str(error) else "What a run uses"
        raise DataError(
            f"{folder} must stay there and let this account read and write all the "
            f"time. Received: {cause(error)}\nThe same command continues from the last "
            "checkpoint."
        ) from error
    except (tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
        problems = [
            problem
            for split in manifest.splits
            for problem in verify.examine(data_dir, manifest, split)[1]
        ]
        if not problems:
            raise
        raise DataError(
            "\n".join(problems) + "\nCopy the dataset again, or preprocess it again."
        ) from error


def cause(error: Exception) -> str:
    """Returns the line of TensorFlow's error that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    frames = ("[[", "Detected at", "Graph execution error", "File ", "<stack", "(")
    said = [line for line in lines if not line.startswith(frames)]
    return (said or lines or [type(error).__name__])[-1]


def _sizes(split: Split) -> np.ndarray:
    return np.array([shard.num_records for shard in split.shards])


def _read_phases(paths: list[str], phases: list[order.Phase]) -> tf.data.Dataset:
    """Reads phases one after the other, and in each one record of each row in turn."""
    num_rows = max(len(phase.shard) for phase in phases)

    def table(field: str) -> np.ndarray:
        # A row that only fills up the table has count 0.
        values = [getattr(phase, field) for phase in phases]
        return np.stack([np.pad(v, (0, num_rows - len(v))) for v in values])

    all_paths = tf.constant(paths)
    stride = phases[0].stride

    def read_row(
        shard: tf.Tensor, first: tf.Tensor, count: tf.Tensor
    ) -> tf.data.Dataset:
        records = tf.data.TFRecordDataset(all_paths[shard])
        turned = records.skip(first).concatenate(records.take(first))
        return turned.shard(stride, 0).take(count)

    def read_phase(*rows: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(rows).interleave(
            read_row,
            cycle_length=num_rows,
            block_length=1,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    tables = (table("shard"), table("first"), table("count"))
    return tf.data.Dataset.from_tensor_slices(tables).flat_map(read_phase)


def parse(serialized: tf.Tensor, manifest: Manifest) -> dict[str, tf.Tensor]:
    """Decodes records, string [B], and turns padding to the end.

    Returns:
      {tokens: int32 [B, sequence_length], length: int32 [B]}, and label: int32 [B] of
      labelled records.

    Raises:
      InvalidArgumentError: as it runs, where a token is outside the vocabulary.
    """
    batch = schema.parse(
        serialized,
        sequence_length=manifest.sequence_length,
        dtype=manifest.dtype,
        labelled=manifest.labelled,
    )
    if manifest.padding_side == "left":
        # A causal model gives the same at the real tokens when the padding, which
        # none of them sees, comes after them.
        turn = tf.range(manifest.sequence_length) - batch[schema.LENGTH][:, None]
        turn %= manifest.sequence_length
        batch[schema.TOKENS] = tf.gather(batch[schema.TOKENS], turn, batch_dims=1)
    # A gather with an id outside the vocabulary would not complain on a TPU.
    in_vocabulary = tf.debugging.assert_less(
        batch[schema.TOKENS],
        manifest.vocabulary_size,
        message="A record holds a token id outside the vocabulary.",
    )
    with tf.control_dependencies([in_vocabulary]):
        return {name: tf.identity(value) for name, value in batch.items()}


def options() -> tf.data.Options:
    """Returns those of every dataset: the order is fixed, and so are a host's parts."""
    found = tf.data.Options()
    found.deterministic = True
    # `order` has already given each host its own part.
    found.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    return found
