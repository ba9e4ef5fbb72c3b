"""What a run leaves behind for people: samples, events, TensorBoard, wandb."""

import functools
import json
import pathlib
import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

from configs import tpu
from configs.errors import UserError
from configs.schema import Config
from tests import programs
from tests.conftest import SMALL
from trainer.callbacks.metrics import Metrics
from trainer.run_dir import journal, metrics, trackers
from trainer.runtime import strategy as strategies

TRACKED = (
    *SMALL,
    "--config.tracking.sample_interval=2",
    "--config.tracking.sample_tokens=6",
    "--config.tracking.sample_prompt=The quick",
    "--config.tracking.histograms=true",
)


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory) -> pathlib.Path:
    """A workdir with all that can be asked for."""
    workdir = tmp_path_factory.mktemp("tracking") / "run"
    train(small_run, workdir, *TRACKED)
    return workdir


def train(small_run, workdir, *arguments, **environment):
    program = programs.Program(
        "trainer.train",
        f"--data_dir={small_run / 'data'}",
        f"--workdir={workdir}",
        *arguments,
        **environment,
    )
    code, _, log = program.finish()
    assert code == 0, log
    return log


def lines(workdir: pathlib.Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def test_every_step_that_is_logged_has_these_values(run):
    for line in lines(run, journal.METRICS_NAME):
        if "loss" in line:
            assert {"learning_rate", "gradient_norm", "update_norm", "tokens"} < set(
                line
            )
            assert line["update_norm"] > 0
            # Of no CPU a peak is known, and none tells its memory.
            assert "mfu" not in line
            assert "hbm_bytes_in_use" not in line


def test_samples_come_at_intervals(run):
    samples = lines(run, journal.SAMPLES_NAME)
    assert [sample["step"] for sample in samples] == [0, 2, 4, 6]
    assert {sample["prompt"] for sample in samples} == {"The quick"}
    texts = [sample["text"] for sample in samples]
    assert all(text.startswith("The quick") for text in texts)
    assert len(set(texts)) > 1  # each is of the weights of its step


def test_sampling_changes_nothing_of_the_training(run, small_run, tmp_path):
    plain = tmp_path / "plain"
    train(small_run, plain, *SMALL)
    names = ("step", "loss", "validation_loss", "gradient_norm", "update_norm")

    def of_training(workdir):
        found = lines(workdir, journal.METRICS_NAME)
        return [[line.get(name) for name in names] for line in found]

    assert of_training(plain) == of_training(run)
    assert not (plain / journal.SAMPLES_NAME).exists()


def test_tensorboard_has_config_samples_and_histograms(run):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    tags = events.Tags()["tensors"]
    assert [e.step for e in events.Tensors("sample")] == [0, 2, 4, 6]
    (config,) = events.Tensors("config")
    assert b"| training.num_steps | `6` |" in config.tensor_proto.string_val[0]
    assert any(tag.startswith("model/transformer/h_._0/attn") for tag in tags)
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")


def test_events_tell_starts_and_what_was_wrong(run, small_run):
    starts = [
        e for e in lines(run, journal.EVENTS_NAME) if "training on" in e["message"]
    ]
    assert [(e["step"], e["level"]) for e in starts] == [(0, "info")]
    # A workdir of another config: what the user is told stands there, too.
    program = programs.Program(
        "trainer.train",
        *TRACKED,
        "--config.training.seed=7",
        f"--data_dir={small_run / 'data'}",
        f"--workdir={run}",
    )
    code, _, log = program.finish()
    assert code == 2, log
    last = lines(run, journal.EVENTS_NAME)[-1]
    assert last["level"] == "error"
    assert "training.seed" in last["message"]


def test_the_run_says_what_it_is(run):
    found = json.loads((run / journal.RUN_NAME).read_text())
    assert found["command"].startswith("python -m trainer.train --data_dir=")
    assert "--config.tracking.sample_tokens=6" in found["command"]
    assert found["hardware"] == "CPU x 1"
    assert found["tokens_per_step"] == 4 * 128
    assert found["config"]["training"]["num_steps"] == 6
    assert "tensorflow" in found["versions"]


def test_lines_after_the_step_of_a_checkpoint_are_dropped(tmp_path):
    """And so is one that a kill has torn."""
    log = metrics.MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
        log.write_sample(step, "a", f"text {step}")
    log.flush()
    with (tmp_path / journal.SAMPLES_NAME).open("a") as stream:
        stream.write('{"step": 3, "te')
    again = metrics.MetricsLog(str(tmp_path), 2)
    assert [line["step"] for line in metrics.load(str(tmp_path))] == [1, 2]
    samples = functools.partial(
        journal.lines, str(tmp_path), journal.SAMPLES_NAME, needed="text"
    )
    assert [line["step"] for line in samples()] == [1, 2]
    again.write_sample(3, "a", "other")
    again.flush()
    assert samples()[-1]["text"] == "other"


def test_mfu_is_flops_by_peak(tmp_path):
    """At 8 steps a second of 500 FLOPs, 4,000 of the 16,000 that the peak allows."""
    log = metrics.MetricsLog(str(tmp_path), 0)
    callback = Metrics(
        log,
        tqdm(disable=True),
        tokens_per_step=10,
        flops_per_step=500,
        peak_flops=16_000.0,
        strategy=None,
    )
    assert callback.speeds(8.0) == {"tokens_per_second": 80.0, "mfu": 0.25}


def test_peaks_are_known_of_tpus_alone():
    v3 = strategies.Found("TPU", 8, tpu.parse("v3-8"))
    assert v3.peak_flops == 8 * tpu.GENERATIONS["v3"].peak_flops
    assert strategies.Found("CPU", 2).peak_flops is None
    assert strategies.hbm_bytes_in_use(strategies.mirror_cpu(2)) is None


def leveldb_records(data: bytes) -> list[bytes]:
    """What wandb's file holds: LevelDB's log format, behind 7 bytes of its own.

    A record is {CRC: 4 bytes, length: 2, kind: 1, data}, and is cut at the edges of
    blocks of 32 KiB into parts of kind 2 (first), 3 and 4 (last); 1 is whole.
    """
    found, place = [], 7
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part = data[place + 7 : place + 7 + length]
        found.append(part if kind < 3 else found.pop() + part)
        place += 7 + length
    return found


@pytest.mark.slow
def test_wandb_offline_has_the_run(small_run, tmp_path):
    pytest.importorskip("wandb", reason="needs the extra `wandb`")
    from wandb.proto import wandb_internal_pb2

    workdir = tmp_path / "run"
    train(
        small_run,
        workdir,
        *TRACKED,
        "--config.tracking.wandb=true",
        "--config.tracking.wandb_project=here",
        WANDB_MODE="offline",
    )
    (path,) = (workdir / "wandb").glob("offline-run-*/*.wandb")
    records = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        records.append(record)
    (header,) = [r.run for r in records if r.HasField("run")][:1]
    assert (header.project, header.display_name) == ("here", "run")
    fields = {item.key: item.value_json for item in header.config.update}
    assert fields["training.num_steps"] == "6"
    logged = [
        {item.key or item.nested_key[0]: item.value_json for item in r.history.item}
        for r in records
        if r.HasField("history")
    ]
    losses = {int(row["step"]): float(row["loss"]) for row in logged if "loss" in row}
    expected = {
        line["step"]: line["loss"]
        for line in lines(workdir, journal.METRICS_NAME)
        if "loss" in line
    }
    assert losses == pytest.approx(expected)


def test_without_its_package_wandb_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'gpt2-tpu\[wandb\]'"):
        trackers.WeightsAndBiases(str(tmp_path), Config())
