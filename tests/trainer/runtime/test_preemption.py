"""Real processes, stopped by real signals and by a real metadata server."""

import contextlib
import http.server
import json
import random
import signal
import threading
import time

import numpy as np
import pytest
import safetensors.numpy

from tests.conftest import write_dataset
from tests.programs import Program
from trainer.run_dir import metrics
from trainer.runtime import preemption
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu

# So many that a signal comes in time, on however fast a machine.
NUM_STEPS = 120


def command(dataset, workdir, *, sample_interval=0, **training):
    """Returns arguments of `trainer.train`."""
    settings = {
        "global_batch_size": 4,
        "microbatch_size": 2,
        "num_steps": NUM_STEPS,
        "dropout": 0.1,
        "precision": "bfloat16",  # not compiled here, which starts sooner
        "steps_per_execution": 1,
        "checkpoint_interval": 10,
        "evaluation_interval": 25,
        **training,
    }
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 16}
    return [
        "--config=configs/quickstart.py",
        f"--config.tracking.sample_interval={sample_interval}",
        "--config.tracking.sample_tokens=4",
        *(f"--data_dir={dataset[0]}", f"--workdir={workdir}", "--tpu=none"),
        "--config.data.sequence_length=8",
        *(f"--config.model.{name}={value}" for name, value in shape.items()),
        *(f"--config.training.{name}={value}" for name, value in settings.items()),
    ]


def start(arguments, **environment):
    return Program("trainer.train", *arguments, **environment)


def finish(process):
    """Returns its exit code and the end of its log."""
    code, _, log = process.finish()
    return code, log[-2000:]


def wait_for_step(workdir, step, process):
    while process.poll() is None:
        if any(line["step"] >= step for line in metrics.load(str(workdir))):
            return
        time.sleep(0.01)
    pytest.fail(f"it ended before step {step}: {finish(process)}")


def outcome(workdir):
    """Final weights and slots, and the metrics without what a clock measured."""
    folder = max((workdir / "checkpoints").glob("step-????????"))
    state = safetensors.numpy.load_file(folder / "state.safetensors")
    lines = [
        {k: v for k, v in line.items() if k != "tokens_per_second"}
        for line in metrics.load(str(workdir))
    ]
    return folder.name, state, lines


def assert_same(workdir, whole):
    found, expected = outcome(workdir), outcome(whole)
    assert found[0] == expected[0]
    assert found[2] == expected[2]
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokens):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(
        folder / "data",
        train_tokens=tokens,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    code, log = finish(start(command([folder / "data"], folder / "run")))
    assert code == 0, log
    return folder / "run"


def test_sigterm_saves_and_says_so(dataset, tmp_path, whole):
    process = start(command(dataset, tmp_path / "run"))
    wait_for_step(tmp_path / "run", 5, process)
    process.send_signal(signal.SIGTERM)
    code, log = finish(process)
    assert code == 75, log
    assert "Stopped by SIGTERM; all steps are saved" in log
    assert "Traceback" not in log
    step = metrics.load(str(tmp_path / "run"))[-1]["step"]
    assert 5 <= step < NUM_STEPS
    assert outcome(tmp_path / "run")[0] == f"step-{step:08d}"
    code, log = finish(start(command(dataset, tmp_path / "run")))
    assert code == 0, log
    assert_same(tmp_path / "run", whole)


@contextlib.contextmanager
def metadata_server(answers):
    """Yields the address of a server that answers with what `answers` then holds."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.get(self.path.rpartition("/")[2])
            self.send_response(200 if answer else 404)
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_the_metadata_server_announces_the_end(dataset, tmp_path):
    answers = {"preempted": "FALSE", "maintenance-event": "NONE"}
    with metadata_server(answers) as address:
        arguments = command(dataset, tmp_path / "run", num_steps=100_000)
        process = start(arguments, GCE_METADATA_HOST=address)
        wait_for_step(tmp_path / "run", 2, process)
        answers["preempted"] = "TRUE"
        code, log = finish(process)
    assert code == 75, log
    assert "preempted TRUE of the metadata server" in log


@pytest.mark.parametrize(
    ("event", "value"),
    [
        ("preempted", "TRUE"),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE"),
    ],
)
def test_a_failure_of_the_metadata_server_does_not_end_the_watching(
    monkeypatch, event, value
):
    asked = []

    class Answers(dict):
        def get(self, name):
            asked.append(name)
            return super().get(name)

    def wait_until(condition):
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    answers = Answers({"preempted": "FALSE", "maintenance-event": "NONE"})
    with metadata_server(answers) as address:
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        with preemption.watched(Cluster(mirror_cpu(1)), 0.05) as notice:
            wait_until(lambda: len(asked) > 2)
            answers.pop(event)
            asked.clear()
            wait_until(lambda: asked.count(event) > 1)
            assert notice.reason == ""
            answers[event] = value
            wait_until(lambda: notice.reason)
        with pytest.raises(preemption.PreemptedError, match=f"{event} {value} of"):
            notice.check()


def test_a_metadata_server_that_hangs_changes_nothing(dataset, tmp_path, whole):
    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            time.sleep(600)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    arguments = command(dataset, tmp_path / "run")
    code, log = finish(start(arguments, GCE_METADATA_HOST=address))
    server.shutdown()
    assert code == 0, log
    assert_same(tmp_path / "run", whole)


def test_a_second_trainer_is_refused(dataset, tmp_path):
    process = start(command(dataset, tmp_path / "run", num_steps=100_000))
    wait_for_step(tmp_path / "run", 1, process)
    code, log = finish(start(command(dataset, tmp_path / "run")))
    assert code == 2
    assert "must have one writer" in log
    process.kill()
    process.finish()


@pytest.mark.slow
def test_thirty_kills_change_nothing(dataset, tmp_path):
    """At random moments; most of the time a save goes on. Fewer on a fast machine."""
    options = {
        "num_steps": 200,
        "checkpoint_interval": 1,
        "evaluation_interval": 60,
        "microbatch_size": 4,
        "keep_last": 3,
    }
    code, log = finish(start(command(dataset, tmp_path / "whole", **options)))
    assert code == 0, log
    chance = random.Random(0)
    run, steps = tmp_path / "run", []
    while len(steps) < 30 and (not steps or steps[-1] < 180):
        process = start(command(dataset, run, **options))
        before = metrics.load(str(run))
        wait_for_step(run, before[-1]["step"] + 1 if before else 1, process)
        time.sleep(chance.uniform(0, 0.1))
        process.kill()
        process.finish()
        steps.append(metrics.load(str(run))[-1]["step"])
    assert len(steps) > 5
    assert steps[-1] < 200
    code, log = finish(start(command(dataset, run, **options)))
    assert code == 0, log
    assert_same(run, tmp_path / "whole")
    files = {
        p.relative_to(run / "checkpoints") for p in (run / "checkpoints").rglob("*")
    }
    kept = {p.relative_to(run / "checkpoints") for p in (run / "checkpoints").iterdir()}
    assert files == kept | {
        folder / name
        for folder in kept
        for name in ("checkpoint.json", "state.safetensors")
    }
    for folder in kept:
        json.loads((run / "checkpoints" / folder / "checkpoint.json").read_text())
