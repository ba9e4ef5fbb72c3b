"""What TensorFlow's errors are about."""

import pytest
import tensorflow as tf

from configs.errors import DataError
from tfrecords import manifest as manifests
from tfrecords import reader, tensorflow_errors

NO_COMPILER = tf.errors.NotFoundError(
    None,
    None,
    "Graph execution error:\n\nDetected at node 'a' defined at (most recent call last)"
    ":\n"
    'File "/usr/lib/python3.11/runpy.py", line 198, in _run_module\n'
    "could not find registered transfer manager for platform Host -- check target "
    "linkage\n\t [[{{node PartitionedCall}}]] [Op:__inference_generate_1]",
)


def missing(path):
    """The error of reading a file that is not there."""
    try:
        list(tf.data.TFRecordDataset(str(path)))
    except tf.errors.NotFoundError as error:
        return error
    raise AssertionError(path)


@pytest.mark.parametrize("path", ["relative/train-0", "/absolute/train-0"])
def test_a_missing_file_is_about_a_file(path):
    assert tensorflow_errors.is_about_file(missing(path))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Error executing an HTTP request: HTTP response code 404 with body '{\n "
            '"error": {"code": 404}}\'\n\t when reading gs://corpus/data/train-0',
            True,
        ),
        ("The specified path gs://corpus/run was not found.", True),
        ("No registered 'PyFunc' OpKernel for XLA_TPU_JIT devices", False),
        (NO_COMPILER.message, False),
    ],
)
def test_other_errors_name_a_path_or_are_not_about_a_file(message, expected):
    error = tf.errors.NotFoundError(None, None, message)
    assert tensorflow_errors.is_about_file(error) == expected


def test_only_what_is_about_a_file_is_the_users_fault(dataset):
    folder, _ = dataset
    manifest = manifests.load(str(folder))
    for error, reported in (
        (missing(folder / "train-9"), DataError),
        (NO_COMPILER, tf.errors.NotFoundError),
    ):
        with (
            pytest.raises(reported),
            reader.translate_data_loss_errors(str(folder), manifest),
        ):
            raise error
