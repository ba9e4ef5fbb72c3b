"""The folder of a dataset: unfinished work, and how it becomes the dataset.

`OUTPUT_DIR/.unfinished` holds what a run has made. When all is there, the shards are
moved out, and the manifest is written last.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence

from configs.errors import DataError, UserError
from data_pipeline import shards
from data_pipeline.job import Job
from tfrecords import manifest
from tfrecords.storage import files, lease

# What a run has finished, until the dataset is whole.
_WORK_FOLDER = ".unfinished"
# There when the run ended in the user's mistake.
_FAILED = "failed"
# Names the shards that a publication removes or moves out, before it does.
_PUBLISHING = "publishing.json"


@contextlib.contextmanager
def working_in(job: Job, output_dir: str, *, overwrite: bool) -> Iterator[str]:
    """Holds the folder and yields that of the unfinished work.

    Raises:
      UserError: a run of another job was stopped here, and not `overwrite`.
      UserError: another process writes there.
    """
    work_dir = f"{output_dir}/{_WORK_FOLDER}"
    with lease.only_writer(output_dir):
        _open_work(job, output_dir, work_dir, overwrite=overwrite)
        try:
            yield work_dir
        except ValueError:
            # The user will change something: then this work is in nobody's way.
            files.write(f"{work_dir}/{_FAILED}", b"")
            raise


def finished(job: Job, output_dir: str) -> manifest.Manifest | None:
    """Returns the dataset that is there, if it is the job's; removes leftover work.

    Raises:
      UserError: there is the dataset of another job.
      UserError: another process writes there.
    """
    if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
        return None
    with lease.only_writer(output_dir):
        different = _differences(job, output_dir)
        if different:
            raise UserError(
                f"{output_dir} holds a dataset made with other "
                f"{', '.join(different)}. Give another --output_dir, or --overwrite."
            )
        files.remove(f"{output_dir}/{_WORK_FOLDER}")
        return manifest.load(output_dir)


def publish(
    result: manifest.Manifest, items: Sequence[shards.ShardItem], output_dir: str
) -> None:
    """Moves the dataset out of the work folder, the manifest last.

    A run that is stopped here writes again what was moved, and publishes anew.
    """
    work_dir = f"{output_dir}/{_WORK_FOLDER}"
    manifest_path = f"{output_dir}/{manifest.FILE_NAME}"
    names = {item.name for item in items} | _shards_in(f"{work_dir}/{_PUBLISHING}")
    names |= _shards_in(manifest_path)  # of the dataset that --overwrite replaces
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
    files.write(manifest_path, manifest.to_json(result).encode())
    files.remove(work_dir)


def _shards_in(path: str) -> set[str]:
    """Returns the shards that a manifest names, of whatever version, or any JSON."""
    if not files.exists(path):
        return set()
    text = files.read(path).decode(errors="replace")
    return set(re.findall(r'"([a-z]+-\d{5}-of-\d{5}\.tfrecord)"', text))


def _remove_shards(output_dir: str, names: set[str]) -> None:
    for name in names:
        files.remove(f"{output_dir}/{name}")


def _open_work(job: Job, output_dir: str, work_dir: str, *, overwrite: bool) -> None:
    """Makes the folder for unfinished work, or finds that of a stopped run.

    Raises:
      UserError: a run of another job was stopped here.
    """
    path = f"{work_dir}/job.json"
    # Without job.json it was being removed; beside its finished dataset it was, too.
    usable = files.exists(path) and _differences(job, output_dir) != []
    if usable:
        different = _differences_from(job, files.read(path))
        failed = files.exists(f"{work_dir}/{_FAILED}")
        if different and not (overwrite or failed):
            raise UserError(
                f"{output_dir} holds the work of a run that was stopped, with other "
                f"{', '.join(different)}. Finish it with the config that it began "
                "with, or give another --output_dir, or --overwrite."
            )
        usable = not different
    if not usable:
        if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
            # Half of a dataset, which nobody publishes any more.
            _remove_shards(output_dir, _shards_in(f"{work_dir}/{_PUBLISHING}"))
        files.remove(work_dir)
    files.remove(f"{work_dir}/{_FAILED}")
    files.write(path, json.dumps(job.description()).encode())


def _differences_from(job: Job, description: bytes) -> list[str]:
    try:
        return job.differences(json.loads(description))
    except (ValueError, AttributeError):
        return ["job.json, which is damaged"]


def _differences(job: Job, output_dir: str) -> list[str] | None:
    """Names the fields in which the dataset there differs; None: there is none."""
    if not files.exists(f"{output_dir}/{manifest.FILE_NAME}"):
        return None
    try:
        return job.differences(manifest.load(output_dir).config)
    except DataError:  # damaged, or of another version
        return ["format version"]
