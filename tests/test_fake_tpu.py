"""The programs on a TPU that is not there, in the environment of `make install-tpu`.

All but the compiler, libtpu, and the speed is what runs on a real TPU VM: the resolver,
TPUStrategy, TensorFlow's graph passes, and HLO. `tests/fake_tpu/` takes libtpu's place.
"""

import itertools
import json
import shutil
import subprocess

import numpy as np
import pytest
import safetensors.numpy

from tests import programs
from tests.conftest import ROOT, assert_refused
from tests.fake_tpu import environment, machine
from tests.trainer.planning.test_planner import needs_compiler
from tests.trainer.runtime.test_cluster import free_ports
from tfrecords.storage import files

pytestmark = pytest.mark.slow

NUM_STEPS = 6
# A step is 8 replicas x 2 accumulation steps x microbatch 1; or 1 x 16 x 1.
SETTINGS = (
    "--config=configs/quickstart.py",
    *("--config.model.n_embd=32", "--config.model.n_layer=1"),
    *("--config.training.global_batch_size=16", "--config.training.dropout=0.1"),
    f"--config.training.num_steps={NUM_STEPS}",
    "--config.training.steps_per_execution=1",
    "--config.training.evaluation_interval=3",
    "--config.training.checkpoint_interval=3",
    "--config.tracking.sample_interval=0",
)
SHOWING = (
    *("--config.tracking.sample_interval=6", "--config.tracking.sample_tokens=4"),
    "--config.tracking.histograms=True",
)
# What tests/test_end_to_end.py trains on a CPU with, for the TPU's own kernels.
TPU_SETTINGS = (
    *SETTINGS,
    *("--config.training.precision=bfloat16", "--config.training.remat=block"),
    *("--config.optimizer.name=adafactor", "--config.training.num_steps=2"),
    *("--config.training.steps_per_execution=2",),
    *(
        "--config.training.evaluation_interval=0",
        "--config.training.checkpoint_interval=0",
    ),
)


@pytest.fixture(scope="module")
def tpu(tpu_environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("fake_tpu")
    plugin = machine.build(tpu_environment.venv, tpu_environment.venv.parent)
    host = machine.Machine(tpu_environment.venv, plugin, folder)
    yield host
    host.close()


def on(small_run, workdir, *arguments):
    """Arguments of `trainer.train`."""
    return (*arguments, f"--data_dir={small_run / 'data'}", f"--workdir={workdir}")


def succeed(process):
    assert process.returncode == 0, process.stderr[-5000:]
    return process


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def eight(tpu, small_run, folder):
    """A run on eight cores, `folder/eight`."""
    arguments = on(small_run, folder / "eight", *SETTINGS, *SHOWING, "--tpu=local")
    return succeed(tpu.run("trainer.train", *arguments))


def lines(workdir):
    """The metrics of a run, without what a clock measures."""
    text = (workdir / "metrics.jsonl").read_text()
    measured = ("tokens_per_second", "mfu", "crc32")
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            if name not in measured
        }
        for line in text.splitlines()
    ]


def assert_close(workdir, expected, tolerance=1e-6):
    for line, other in zip(lines(workdir), lines(expected), strict=True):
        assert line == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.usefixtures("eight")
def test_eight_cores_and_one_train_as_a_cpu_does(tpu, small_run, folder):
    """A CPU device and one core add up 16 microbatches, each of eight cores 2."""
    arguments = on(small_run, folder / "one", *SETTINGS, "--tpu=local")
    succeed(tpu.run("trainer.train", *arguments, cores=1))
    arguments = on(small_run, folder / "cpu", *SETTINGS, "--tpu=none")
    succeed(programs.run("trainer.train", *arguments))
    assert len(lines(folder / "cpu")) == NUM_STEPS + 3
    assert_close(folder / "one", folder / "cpu")
    assert_close(folder / "eight", folder / "cpu")


def test_two_programs_are_compiled_and_all_of_a_step_is_in_one(eight):
    compiled = eight.events("compile")
    assert [event["op"] for event in compiled] == ["TPUCompile"] * 2
    for event in compiled:
        assert event["replicas"] == 8
        assert event["dynamic_inputs"] == 0
        assert event["host_transfers"] == 0
    executed = [event["program"] for event in eight.events("execute")]
    # Evaluation, which comes first, before step 1.
    assert executed.count(1) == NUM_STEPS
    assert set(executed) == {0, 1}


def test_an_execution_is_one_read_of_the_device(eight):
    """Of all that the callbacks look at."""
    events = eight.events("execute", "read")
    steps = [index for index, event in enumerate(events) if event.get("program") == 1]
    assert len(steps) == NUM_STEPS
    for step, (first, last) in enumerate(itertools.pairwise(steps), start=1):
        if step % 3 == 0:
            continue  # it is evaluated and saved
        # The iterator of each core reads a number in a thread of its own.
        reads = [e for e in events[first + 1 : last] if e["edge"] != "arg_1"]
        assert [event["bytes"] for event in reads] == [7 * 4]


@pytest.mark.usefixtures("eight")
def test_samples_and_histograms_are_written(folder):
    samples = (folder / "eight" / "samples.jsonl").read_text()
    assert samples.count("\n") == 2


def state(workdir):
    newest = max((workdir / "checkpoints").glob("step-????????"))
    return newest.name, safetensors.numpy.load_file(newest / "state.safetensors")


@pytest.mark.usefixtures("eight")
def test_a_run_that_was_stopped_continues_bit_for_bit(tpu, small_run, folder):
    whole, stopped = folder / "eight", folder / "stopped"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / f"step-{NUM_STEPS:08d}")
    arguments = on(small_run, stopped, *SETTINGS, *SHOWING, "--tpu=local")
    continued = succeed(tpu.run("trainer.train", *arguments))
    assert "continuing from" in continued.stderr
    assert len(continued.events("compile")) == 2
    assert lines(stopped) == lines(whole)
    (name, found), (expected_name, expected) = state(stopped), state(whole)
    assert (name, found.keys()) == (expected_name, expected.keys())
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.fixture(scope="module")
def lowered(tpu, small_run, folder):
    """A run whose graphs are lowered by the TPU's kernels."""
    arguments = on(small_run, folder / "lowered", *TPU_SETTINGS, "--tpu=local")
    return succeed(tpu.run("trainer.train", *arguments, kernels="XLA_TPU_JIT"))


def test_all_kernels_exist_for_a_tpu(lowered):
    compiled = lowered.events("compile")
    assert [event["lowered"] for event in compiled] == [1, 1]


@needs_compiler
def test_the_program_is_the_one_that_was_planned(lowered, small_run, folder):
    """The TPU's compiler takes what `fit` gives to a TPU."""
    from configs import tpu as tpu_types
    from trainer.planning import compilation

    hlo = (lowered.folder / "1.hlo").read_bytes()
    found = compilation.compile_hlo(hlo, tpu_types.parse("v3-8"))
    assert found["fits"]
    assert found["replicas_added_up"] == 8
    arguments = (*on(small_run, folder / "plan", *TPU_SETTINGS), "--tpu_type=v3-8")
    planned = programs.run("trainer.plan", *arguments, "--json")
    planned = json.loads(succeed(planned).stdout)
    assert found["temporary_bytes"] == planned["temporary_bytes"]
    # The program of `fit` is a little longer, and part of the peak.
    assert found["peak_bytes"] == pytest.approx(planned["peak_bytes"], rel=1e-2)


@pytest.mark.usefixtures("eight")
def test_the_other_bridge_trains_the_same(tpu, small_run, folder):
    workdir = folder / "bridge"
    arguments = on(small_run, workdir, *SETTINGS, "--tpu=local")
    process = tpu.run("trainer.train", *arguments, FAKE_TPU_BRIDGE="MLIR")
    compiled = succeed(process).events("compile")
    assert [event["op"] for event in compiled] == ["_TPUCompileMlir"] * 2
    assert_close(workdir, folder / "eight")


@pytest.mark.usefixtures("eight")
def test_two_remote_hosts_train_the_same(
    tpu, tpu_environment, small_run, folder, store, bucket, monkeypatch
):
    """A pod: each host has four of the eight cores; data and run are in a bucket."""
    for path in (small_run / "data").rglob("*"):
        if path.is_file():
            name = path.relative_to(small_run).as_posix()
            files.write(f"{bucket}/{name}", path.read_bytes())
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    arguments = (*SETTINGS, f"--data_dir={bucket}/data", f"--workdir={bucket}/run")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    name = ",".join(f"grpc://{address}" for address in addresses)
    remote = {"TPU_NAME": name, "TPU_LOAD_LIBRARY": "1"}
    with tpu.serving(addresses, cores=4, **store.environment) as hosts:
        # A new process, which would load its own TPU, as on a TPU VM, if it could.
        process = subprocess.run(
            [tpu_environment.venv / "bin/python", "-m", "trainer.train", *arguments],
            cwd=ROOT,
            env=environment.variables() | remote,
            capture_output=True,
            text=True,
        )
    succeed(process)
    assert (hosts / "log.jsonl").read_text().count('"compile"') == 2
    workdir = folder / "remote"
    workdir.mkdir()
    metrics = files.read(f"{bucket}/run/metrics.jsonl")
    (workdir / "metrics.jsonl").write_bytes(metrics)
    assert_close(workdir, folder / "eight")


@pytest.mark.usefixtures("eight")
def test_programs_run_beside_a_tpu(tpu, small_run, folder):
    """`tensorflow-tpu` has no compiler for the CPU."""
    workdir, data = f"--workdir={folder / 'eight'}", f"--data_dir={small_run / 'data'}"
    generate = (workdir, "--prompt=The quick", "--max_new_tokens=6", "--json")
    expected = succeed(programs.run("trainer.generate", *generate)).stdout
    assert succeed(tpu.run("trainer.generate", *generate)).stdout == expected

    scored = {}
    for where in ("--tpu=local", "--tpu=none"):
        process = tpu.run("trainer.evaluate", workdir, data, where, "--json")
        scored[where] = json.loads(succeed(process).stdout)["loss"]
    expected = programs.run("trainer.evaluate", workdir, data, "--tpu=none", "--json")
    loss = json.loads(succeed(expected).stdout)["loss"]
    assert list(scored.values()) == pytest.approx([loss, loss], rel=1e-6)

    for name in ("huggingface", "saved_model"):
        output = f"--output_dir={folder / name}"
        succeed(tpu.run("trainer.export", workdir, output, f"--format={name}"))


def test_the_doctor_says_what_it_has_proved(tpu):
    config = "--config=configs/quickstart.py"
    process = tpu.run("trainer.doctor", config, "--tpu=local", "--json")
    result = json.loads(succeed(process).stdout)
    assert result["num_replicas"] == 8
    assert result["proved"].startswith("8 TPU replicas multiplied matrices")
    process = tpu.run("trainer.doctor", config, "--tpu=none", "--json")
    assert "Nothing about a TPU" in json.loads(succeed(process).stdout)["proved"]
    pod = tpu.run("trainer.doctor", config, "--tpu=local", TPU_ACCELERATOR_TYPE="v3-32")
    assert_refused(pod, "all 32 replicas of this machine's v3-32. Received: 8")


def test_training_and_planning_on_the_cpu_beside_a_tpu(tpu, small_run, folder):
    arguments = on(small_run, folder / "none", *SETTINGS)
    short = "--config.training.num_steps=3"
    succeed(tpu.run("trainer.train", *arguments, short, "--tpu=none"))
    planned = tpu.run("trainer.plan", *arguments, "--tpu_type=v3-8")
    assert_refused(planned, "make plan VENV=.venv-plan")
