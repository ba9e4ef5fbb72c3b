"""The main job on gs://, by TensorFlow's own client, while the bucket makes faults."""

import json
import pydoc_data.topics
import time

import numpy as np
import pytest
import safetensors.numpy

from tests.programs import Program
from tests.trainer.runtime.test_preemption import metadata_server
from trainer.runtime import cloud_metadata

object_store = pytest.importorskip("tests.object_store")

SHAPE = ("n_layer=1", "n_head=2", "n_embd=16", "n_positions=32")
TRAINING = (
    *("global_batch_size=4", "microbatch_size=2", "num_steps=40", "dropout=0.1"),
    *("precision=bfloat16", "steps_per_execution=2", "checkpoint_interval=10"),
    "evaluation_interval=20",
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n\n".join(pydoc_data.topics.topics.values())[:200_000])
    return path


def preprocess(text, data_dir):
    return [
        *("data_pipeline.preprocess", "--config=configs/quickstart.py"),
        *(f"--input={text}", "--config.data.document=paragraph"),
        *("--config.data.vocab_size=300", "--config.data.sequence_length=32"),
        *("--config.data.num_shards=4", f"--output_dir={data_dir}"),
    ]


def train(data_dir, workdir):
    return [
        *("trainer.train", "--config=configs/quickstart.py", "--tpu=none"),
        "--config.tracking.sample_interval=20",
        "--config.tracking.sample_tokens=8",
        *(f"--data_dir={data_dir}", f"--workdir={workdir}", "--json"),
        "--config.data.sequence_length=32",
        *(f"--config.model.{field}" for field in SHAPE),
        *(f"--config.training.{field}" for field in TRAINING),
    ]


def evaluate(data_dir, workdir):
    return [
        *("trainer.evaluate", f"--data_dir={data_dir}", f"--workdir={workdir}"),
        *("--json", "--tpu=none"),
    ]


def start(store, arguments):
    return Program(*arguments, **store.environment)


def succeed(store, arguments):
    code, out, log = start(store, arguments).finish()
    assert code == 0, log[-3000:]
    assert "a-secret-token" not in out + log
    return out


def contents(store, url):
    """Returns everything below gs://corpus/…, read without any client."""
    prefix = url.removeprefix("gs://corpus/") + "/"
    path = f"/storage/v1/b/corpus/o?prefix={prefix}"
    items = json.loads(store.ask("GET", path, {}, b"")[2]).get("items", [])
    return {
        item["name"].removeprefix(prefix): store.ask(
            "GET",
            f"/download/storage/v1/b/corpus/o/{item['name'].replace('/', '%2F')}"
            "?alt=media",
            {},
            b"",
        )[2]
        for item in items
    }


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_the_whole_job_equals_the_one_on_a_disk(store, text, tmp_path):
    """With a tenth of all answers 429 or 503, and answers that break off midway."""
    for folder, data, run in (
        ("local", str(tmp_path / "data"), str(tmp_path / "run")),
        ("bucket", "gs://corpus/data", "gs://corpus/run"),
    ):
        if folder == "bucket":
            store.faults = [
                object_store.Fault(".", status=503, probability=0.05),
                object_store.Fault(".", status=429, probability=0.05),
                object_store.Fault("GET .*(alt=media|tfrecord)", probability=0.1),
            ]
        succeed(store, preprocess(text, data))
        if folder == "bucket":
            process = start(store, train(data, run))
            while not any("step-00000020" in request for request in store.requests):
                assert process.poll() is None, process.finish()
                time.sleep(0.05)
            process.kill()
            process.finish()
        succeed(store, train(data, run))
        figures = json.loads(succeed(store, evaluate(data, run)))
        assert figures.pop("model") == run
        if folder == "local":
            expected = figures
    assert store.num_faults > 20
    store.faults = []
    assert figures == expected
    found = contents(store, "gs://corpus/data")
    assert not [name for name in found if name.startswith(".")]
    for path in (tmp_path / "data").iterdir():
        if path.is_file():
            assert found[path.name] == path.read_bytes(), path.name
    found = contents(store, "gs://corpus/run")
    samples = (tmp_path / "run" / "samples.jsonl").read_bytes()
    assert found["samples.jsonl"] == samples
    assert samples.count(b"\n") == 3  # of steps 0, 20 and 40
    (name,) = (path.name for path in (tmp_path / "run" / "evaluations").iterdir())
    assert json.loads(found[f"evaluations/{name}"])["loss"] == figures["loss"]
    # Nothing is left of the program that was killed.
    steps = {
        name.split("/")[1] for name in found if name.startswith("checkpoints/step")
    }
    assert len(steps) == 2
    for step in steps:
        assert f"checkpoints/{step}/checkpoint.json" in found
    assert not [name for name in found if name.endswith((".writer", ".partial"))]
    name = "checkpoints/step-00000040/state.safetensors"
    a = safetensors.numpy.load(found[name])
    b = safetensors.numpy.load((tmp_path / "run" / name).read_bytes())
    assert a.keys() == b.keys()
    for key, value in b.items():
        np.testing.assert_array_equal(a[key], value, err_msg=key)


@pytest.fixture
def small_data(store, bucket, dataset):
    """The URL of a small dataset in the bucket."""
    folder, _ = dataset
    for path in folder.rglob("*"):
        if path.is_file():
            name = f"small/{path.relative_to(folder)}".replace("/", "%2F")
            query = f"uploadType=media&name={name}"
            url = f"/upload/storage/v1/b/corpus/o?{query}"
            assert store.ask("POST", url, {}, path.read_bytes())[0] == 200
    return f"{bucket}/small"


@pytest.mark.parametrize(
    ("pattern", "status", "message"),
    [
        ("GET .*manifest", 401, "needs credentials"),
        ("GET .*manifest", 403, "must let this account read and write"),
        ("GET .*", 404, "must hold a finished dataset"),
        # While it is read, by TensorFlow's client.
        ("GET .*train-0000.-of", 403, "Restore access; the same command"),
    ],
)
def test_what_the_bucket_refuses_is_one_message(
    store, small_data, tmp_path, pattern, status, message
):
    store.faults = [object_store.Fault(pattern, status=status)]
    arguments = [*train(small_data, tmp_path), "--config.data.sequence_length=8"]
    arguments += ["--config.tracking.sample_interval=0"]
    code, _, log = start(store, arguments).finish()
    assert code == 2, log[-3000:]
    assert message in log
    assert "gs://corpus/small" in log
    assert "a-secret-token" not in log
    assert "Traceback" not in log


def test_a_bucket_elsewhere_is_told_of(bucket, caplog):
    for zone, warned in (("us-central1-b", False), ("europe-west4-a", True)):
        caplog.clear()
        with (
            metadata_server({"zone": f"projects/1/zones/{zone}"}) as address,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setenv("GCE_METADATA_HOST", address)
            cloud_metadata.warn_of_distance(f"{bucket}/data")
        assert ("is in US-CENTRAL1" in caplog.text) == warned
