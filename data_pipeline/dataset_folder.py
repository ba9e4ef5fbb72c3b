"""The output folder: unfinished work, and how it becomes the dataset.

A run works in `OUTPUT_DIR/.unfinished`. When all is done, the shards are moved out of
it, and the manifest is written last.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence

from configs.errors import DataError, UserError
from data_pipeline.job import Job
from data_pipeline.records.shards import ShardItem
from tfrecords import manifest, tfds_metadata
from tfrecords.storage import files, lease

_WORK_FOLDER = ".unfinished"
# In the work folder: the job whose work it is; whether it ended in a user's mistake;
# and the names of the shards that a publication is about to remove or move out.
_JOB = "job.json"
_FAILED = "failed"
_PUBLISHING = "publishing.json"


@contextlib.contextmanager
def working_in(job: Job, output_dir: str, *, overwrite: bool) -> Iterator[str]:
    """Locks the output folder and yields the folder for unfinished work.

    Args:
      job: whose work it is.
      output_dir: of the dataset.
      overwrite: whether the work of another job is removed.

    Raises:
      UserError: it holds the work of another job, and not `overwrite`; or another
        process writes there.
    """
    work_dir = f"{output_dir}/{_WORK_FOLDER}"
    with lease.only_writer(output_dir):
        _open_work(job, output_dir, work_dir, overwrite=overwrite)
        try:
            yield work_dir
        except ValueError:
            # The user will change the command, which may then remove this work.
            files.write(f"{work_dir}/{_FAILED}", b"")
            raise


def finished(job: Job, output_dir: str) -> manifest.Manifest | None:
    """Returns the job's dataset if it is finished already, and removes leftover work.

    Raises:
      UserError: the folder holds another dataset, or another process writes there.
    """
    if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
        return None
    with lease.only_writer(output_dir):
        different = _dataset_differences(job, output_dir)
        if different:
            raise UserError(
                "`--output_dir` must be empty, or hold the dataset of this job. "
                f"Received: {output_dir}, which holds a dataset made with other "
                f"{', '.join(different)}. Give another --output_dir, or --overwrite."
            )
        files.remove(f"{output_dir}/{_WORK_FOLDER}")
        return manifest.load(output_dir)


def publish(
    result: manifest.Manifest, items: Sequence[ShardItem], output_dir: str
) -> None:
    """Moves the dataset out of the work folder; the manifest is written last.

    If this is stopped, the next run writes again what was moved, and publishes again.

    Args:
      result: the manifest.
      items: of all shards, which are finished.
      output_dir: of the dataset.
    """
    work_dir = f"{output_dir}/{_WORK_FOLDER}"
    manifest_path = f"{output_dir}/{manifest.FILE_NAME}"
    names = {item.name for item in items}
    names |= _shard_names_in(f"{work_dir}/{_PUBLISHING}")
    names |= _shard_names_in(manifest_path)  # of a dataset that --overwrite replaces
    files.write(f"{work_dir}/{_PUBLISHING}", json.dumps(sorted(names)).encode())
    files.remove(manifest_path)
    _remove_shards(output_dir, names)
    for item in items:
        files.move(item.path, f"{output_dir}/{item.name}")
    files.remove(f"{output_dir}/{manifest.TOKENIZER_FOLDER}")
    for path in files.expand(f"{work_dir}/{manifest.TOKENIZER_FOLDER}"):
        name = path.rsplit("/", 1)[1]
        target = f"{output_dir}/{manifest.TOKENIZER_FOLDER}/{name}"
        files.write(target, files.read(path))
    for name, content in tfds_metadata.contents(result).items():
        files.write(f"{output_dir}/{name}", content)
    files.write(manifest_path, manifest.to_json(result).encode())
    files.remove(work_dir)


def _shard_names_in(path: str) -> set[str]:
    """Returns all names of shards in a file, such as a manifest of any version."""
    if not files.exists(path):
        return set()
    text = files.read(path).decode(errors="replace")
    return set(re.findall(r'"([a-z]+-\d{5}-of-\d{5}\.tfrecord)"', text))


def _remove_shards(output_dir: str, names: set[str]) -> None:
    for name in names:
        files.remove(f"{output_dir}/{name}")


def _open_work(job: Job, output_dir: str, work_dir: str, *, overwrite: bool) -> None:
    """Creates the folder for unfinished work, or checks that of a stopped run.

    Raises:
      UserError: it holds the work of another job.
    """
    path = f"{work_dir}/{_JOB}"
    # A stopped run was removing the folder if the job is missing, and also if the
    # folder stands beside the job's finished dataset.
    usable = files.exists(path) and _dataset_differences(job, output_dir) != []
    if usable:
        different = _work_differences(job, files.read(path))
        failed = files.exists(f"{work_dir}/{_FAILED}")
        if different and not (overwrite or failed):
            raise UserError(
                "`--output_dir` must not hold unfinished work of another job. "
                f"Received: {output_dir}, where a run was stopped with other "
                f"{', '.join(different)}. Finish it with the config that it began "
                "with, or give another --output_dir, or --overwrite."
            )
        usable = not different
    if not usable:
        if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
            # Part of a dataset, whose publication was stopped.
            _remove_shards(output_dir, _shard_names_in(f"{work_dir}/{_PUBLISHING}"))
        files.remove(work_dir)
    files.remove(f"{work_dir}/{_FAILED}")
    files.write(path, json.dumps(job.description()).encode())


def _work_differences(job: Job, description: bytes) -> list[str]:
    try:
        return job.differences(json.loads(description))
    except (ValueError, AttributeError):
        return [f"{_JOB}, which is damaged"]


def _dataset_differences(job: Job, output_dir: str) -> list[str] | None:
    """Names the fields in which the dataset differs; None: it is not finished."""
    if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
        return None
    try:
        return job.differences(manifest.load(output_dir).config)
    except DataError:  # damaged, or of another version
        return ["format version"]
