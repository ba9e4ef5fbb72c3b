"""Several machines: real worker processes on this one, and real signals."""

import contextlib
import json
import signal
import socket
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import write_dataset
from tests.trainer.runtime.test_preemption import (
    assert_same,
    command,
    finish,
    outcome,
    start,
)
from tests.trainer.runtime.test_preemption import wait_for_step as wait
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu

# 12 sequences a step: 1, 2 or 3 machines of 2 at once, or of fewer.
OPTIONS = {
    "global_batch_size": 12,
    "precision": "float32",
    "num_steps": 12,
    "evaluation_interval": 4,
    "checkpoint_interval": 3,
}
# So many steps that a signal comes in time.
LONGER = {"num_steps": 60, "evaluation_interval": 0}


def free_ports(count):
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


def start_machines(count, dataset, workdir, *, each=({},) * 3, **options):
    """Starts a program for each machine of a cluster, the chief first.

    A tuple of workdirs has one for each, and `each` what only that machine is given.
    """
    workdirs = workdir if isinstance(workdir, tuple) else (workdir,) * count
    workers = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        start(
            command(dataset, workdirs[index], **{**OPTIONS, **options, **each[index]}),
            TF_CONFIG=json.dumps(
                {
                    "cluster": {"worker": workers},
                    "task": {"type": "worker", "index": index},
                }
            ),
        )
        for index in range(count)
    ]


def finish_all(machines):
    return [finish(machine) for machine in machines]


def train(count, dataset, workdir, **options):
    for code, log in finish_all(start_machines(count, dataset, workdir, **options)):
        assert code == 0, log
    return outcome(workdir)


@pytest.mark.slow
def test_one_two_and_three_machines_learn_the_same(dataset, tmp_path):
    arguments = command(dataset, tmp_path / "alone", **OPTIONS)
    code, log = finish(start(arguments))
    assert code == 0, log
    _, expected, lines = outcome(tmp_path / "alone")
    assert len(lines) == 12 + 4
    for count in (1, 2, 3):
        workdir = tmp_path / str(count)
        samples = {"sample_interval": 6 * (count == 2)}  # which does not matter
        _, found, same_lines = train(count, dataset, workdir, **samples)
        if count == 2:
            assert (workdir / "samples.jsonl").read_text().count("\n") == 3
        for line, same in zip(lines, same_lines, strict=True):
            assert line.keys() == same.keys()
            for name, value in line.items():
                np.testing.assert_allclose(same[name], value, rtol=1e-5, err_msg=name)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_machine_that_ends_first_is_no_loss(monkeypatch):
    """But one that is gone before all have come is."""
    gone = tf.errors.UnavailableError(None, None, "Socket closed")
    cluster = Cluster(mirror_cpu(1))
    for answers, lost in (([[0, 0], gone], False), ([gone], True)):
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "gather", mock.Mock(side_effect=answers))
            ends = pytest.raises(tf.errors.UnavailableError)
            with ends if lost else contextlib.nullcontext():
                cluster.exit_barrier()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokens):
    """A run of two machines that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    write_dataset(
        folder / "data",
        train_tokens=tokens,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    train(2, [folder / "data"], folder / "run", **LONGER)
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1], ids=["chief", "other"])
def test_when_a_machine_dies_the_others_stop_and_all_continue(
    dataset, tmp_path, whole, killed
):
    machines = start_machines(2, dataset, tmp_path / "run", **LONGER)
    wait(tmp_path / "run", 7, machines[0])
    machines[killed].kill()
    code, log = finish(machines[1 - killed])
    assert code == 75, log
    assert "does not answer any more" in log
    assert "Graph execution error" not in log
    assert "Traceback" not in log
    machines[killed].finish()
    train(2, dataset, tmp_path / "run", **LONGER)
    assert_same(tmp_path / "run", whole)


@pytest.mark.slow
def test_notice_to_one_machine_stops_all_at_the_same_step(dataset, tmp_path):
    machines = start_machines(2, dataset, tmp_path, num_steps=100_000)
    wait(tmp_path, 3, machines[0])
    machines[1].send_signal(signal.SIGTERM)
    (code, log), (other_code, other_log) = finish_all(machines)
    assert (code, other_code) == (75, 75), log + other_log
    assert "Stopped by another machine; all steps are saved" in log
    assert "Stopped by SIGTERM; all steps are saved" in other_log
    folder, _, lines = outcome(tmp_path)
    assert folder == f"step-{lines[-1]['step']:08d}"


@pytest.mark.slow
def test_machines_that_see_other_folders_stop(dataset, tmp_path):
    options = {**OPTIONS, "num_steps": 3}
    code, log = finish(start(command(dataset, tmp_path / "a", **options)))
    assert code == 0, log
    workdirs = (tmp_path / "a", tmp_path / "b")
    machines = start_machines(2, dataset, workdirs, num_steps=3)
    for code, log in finish_all(machines):
        assert code == 2
        assert "`--workdir` must be the same on all 2 machines" in log


@pytest.mark.slow
def test_machines_with_other_settings_stop(dataset, tmp_path):
    for code, log in finish_all(
        start_machines(2, dataset, tmp_path, each=({"seed": 1}, {"seed": 2}))
    ):
        assert code == 2
        assert "`--config` must be the same on all 2 machines" in log


def test_a_port_that_is_taken_is_one_message(dataset, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        workers = [f"127.0.0.1:{taken.getsockname()[1]}"]
        told = {
            "cluster": {"worker": workers},
            "task": {"type": "worker", "index": 0},
        }
        code, log = finish(
            start(command(dataset, tmp_path), TF_CONFIG=json.dumps(told))
        )
    assert code == 2, log
    assert f"{workers[0]} of TF_CONFIG must be an address of this machine" in log
    assert "Traceback" not in log


def test_a_cluster_that_is_not_understood_is_one_message(dataset, tmp_path):
    for told in ("{", "[]", '{"cluster": {"worker": ["a:1"]}, "task": {"index": 1}}'):
        code, log = finish(start(command(dataset, tmp_path), TF_CONFIG=told))
        assert code == 2
        assert "TF_CONFIG must be" in log
        assert "Traceback" not in log
