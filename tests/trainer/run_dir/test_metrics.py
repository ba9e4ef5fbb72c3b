"""What a run records: metrics, samples, events, plans, TensorBoard and wandb."""

import json
import pathlib
import struct
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util
from tqdm import tqdm

from configs import tpu
from configs.errors import DataError, UserError
from configs.schema import Config
from tests import programs
from tests.conftest import SMALL
from trainer.callbacks.metrics import Metrics
from trainer.run_dir import json_files, layout, metrics, plans, trackers
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
    """A workdir with every kind of record."""
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


def test_each_logged_step_has_rate_norms_and_tokens(run):
    for line in lines(run, layout.METRICS):
        if "loss" in line:
            assert {"learning_rate", "gradient_norm", "update_norm", "tokens"} < set(
                line
            )
            assert line["update_norm"] > 0
            # A CPU has no published peak and does not report its memory.
            assert "mfu" not in line
            assert "hbm_bytes_in_use" not in line


def test_samples_are_written_at_the_interval(run):
    samples = lines(run, layout.SAMPLES)
    assert [sample["step"] for sample in samples] == [0, 2, 4, 6]
    assert {sample["prompt"] for sample in samples} == {"The quick"}
    texts = [sample["text"] for sample in samples]
    assert all(text.startswith("The quick") for text in texts)
    assert len(set(texts)) > 1  # each is by the weights of its step


def test_sampling_does_not_change_the_training(run, small_run, tmp_path):
    plain = tmp_path / "plain"
    train(small_run, plain, *SMALL)
    names = ("step", "loss", "validation_loss", "gradient_norm", "update_norm")

    def of_training(workdir):
        return [
            [line.get(name) for name in names]
            for line in lines(workdir, layout.METRICS)
        ]

    assert of_training(plain) == of_training(run)
    assert not (plain / layout.SAMPLES).exists()


def test_tensorboard_has_config_samples_and_histograms(run):
    events = load_events(run / "tensorboard")
    (config,) = events.Tensors("config")
    assert b"| training.num_steps | `6` |" in config.tensor_proto.string_val[0]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    events = load_events(run / "tensorboard/train")
    assert [e.step for e in events.Tensors("sample")] == [0, 2, 4, 6]
    tags = events.Tags()["tensors"]
    assert any(tag.startswith("model/transformer/h_._0/attn") for tag in tags)


def load_events(folder: pathlib.Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_tensorboard_draws_both_losses_in_one_chart(run):
    """As Keras's callback: one tag, in the folders of two of TensorBoard's runs."""
    recorded = lines(run, layout.METRICS)
    for folder, prefix in (("train", ""), ("validation", "validation_")):
        events = load_events(run / "tensorboard" / folder)
        losses = {
            line["step"]: line[f"{prefix}loss"]
            for line in recorded
            if f"{prefix}loss" in line
        }
        shown = {
            event.step: tensor_util.make_ndarray(event.tensor_proto).item()
            for event in events.Tensors("loss")
        }
        assert shown == pytest.approx(losses, rel=1e-6)
    assert set(events.Tags()["tensors"]) == {"loss", "perplexity"}


def test_events_hold_the_starts_and_the_error_that_ended_the_run(run, small_run):
    starts = [e for e in lines(run, layout.EVENTS) if "training on" in e["message"]]
    assert [(e["step"], e["level"]) for e in starts] == [(0, "info")]
    # The message for a config that differs from the workdir's is an event, too.
    program = programs.Program(
        "trainer.train",
        *TRACKED,
        "--config.training.seed=7",
        f"--data_dir={small_run / 'data'}",
        f"--workdir={run}",
    )
    code, _, log = program.finish()
    assert code == 2, log
    last = lines(run, layout.EVENTS)[-1]
    assert last["level"] == "error"
    assert "training.seed" in last["message"]


def test_run_json_describes_the_run(run):
    record = json.loads((run / layout.RUN).read_text())
    assert record["command"].startswith("python -m trainer.train --data_dir=")
    assert "--config.tracking.sample_tokens=6" in record["command"]
    assert record["hardware"] == "CPU x 1"
    assert record["tokens_per_step"] == 4 * 128
    assert record["config"]["training"]["num_steps"] == 6
    assert "tensorflow" in record["versions"]


def test_lines_after_the_step_of_a_checkpoint_are_dropped(tmp_path):
    """And so is a last line that a kill has cut off."""
    log = metrics.MetricsLog(str(tmp_path), 0)
    for step in (1, 2, 3):
        log.write(step, {"loss": 1.0 / step})
        log.write_sample(step, "a", f"text {step}")
    log.flush()
    with (tmp_path / layout.SAMPLES).open("a") as stream:
        stream.write('{"step": 3, "te')
    again = metrics.MetricsLog(str(tmp_path), 2)
    assert [line["step"] for line in metrics.load(str(tmp_path))] == [1, 2]
    path = str(tmp_path / layout.SAMPLES)
    samples = json_files.read_lines(path, required_field="text")
    assert [line["step"] for line in samples] == [1, 2]
    again.write_sample(3, "a", "other")
    again.flush()
    samples = json_files.read_lines(path, required_field="text")
    assert samples[-1]["text"] == "other"


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


def test_only_tpus_have_a_known_peak():
    v3 = strategies.DetectedHardware("TPU", 8, tpu.parse("v3-8"))
    assert v3.peak_flops == 8 * tpu.GENERATIONS["v3"].peak_flops
    assert strategies.DetectedHardware("CPU", 2).peak_flops is None
    assert strategies.hbm_bytes_in_use(strategies.mirror_cpu(2)) is None


def leveldb_records(data: bytes) -> list[bytes]:
    """Reads wandb's file: LevelDB's log format, behind 7 bytes of its own.

    A record is {CRC: 4 bytes, length: 2, kind: 1, data}, and is cut at the edges of
    blocks of 32 KiB into parts of kind 2 (first), 3 and 4 (last); 1 is whole.
    """
    records, place = [], 7
    while place < len(data):
        left = 2**15 - place % 2**15
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        part = data[place + 7 : place + 7 + length]
        records.append(part if kind < 3 else records.pop() + part)
        place += 7 + length
    return records


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
    # One row for each step, with all that the step has.
    assert [int(row["step"]) for row in logged] == [0, 2, 4, 6]
    expected: dict[int, dict] = {0: {}, 2: {}, 4: {}, 6: {}}
    for line in metrics.load(str(workdir)):
        expected[line["step"]] |= line
    for row in logged:
        values = expected[int(row["step"])]
        found = {name: float(row[name]) for name in values}
        assert found == pytest.approx(values)
        assert "sample" in row
        has_histograms = any(name.startswith("model/") for name in row)
        assert has_histograms == (values["step"] > 0)


def test_wandb_without_its_package_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'gpt2-tpu\[wandb\]'"):
        trackers.WeightsAndBiases(str(tmp_path), Config())


class NullTracker:
    """Another tracker: one class."""

    def __init__(self, workdir, config):
        self.calls = []

    def scalars(self, step, values):
        self.calls.append(("scalars", step, dict(values)))

    def text(self, step, name, text):
        self.calls.append((name, step, text))

    def histograms(self, step, values):
        self.calls.append(("histograms", step, values))

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")


def test_a_tracker_receives_what_is_written(tmp_path):
    tracker = NullTracker(str(tmp_path), Config())
    log = metrics.MetricsLog(str(tmp_path), 0)
    log.track([tracker])
    log.write(1, {"loss": 2.0, "norm": float("nan")})
    log.write_sample(1, "a", "a b")
    log.close()
    assert tracker.calls == [
        ("scalars", 1, {"loss": 2.0}),
        "flush",
        ("sample", 1, "a b"),
        "flush",
        "close",
    ]


def test_a_plan_is_kept_for_each_tpu_type(tmp_path):
    workdir = str(tmp_path)
    assert plans.load(workdir, "v3-8") is None
    for tpu_type in ("v3-8", "v2-8"):
        plans.save(workdir, {"tpu_type": tpu_type, "planned_for": {}})
    assert plans.load(workdir, "v3-8") == {"tpu_type": "v3-8", "planned_for": {}}
    assert [plan["tpu_type"] for plan in plans.load_all(workdir)] == ["v2-8", "v3-8"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"planned_for": 3}'])
def test_a_damaged_plan_is_an_error(tmp_path, text):
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "v3-8.json").write_text(text)
    with pytest.raises(DataError, match=r"v3-8\.json is damaged"):
        plans.load(str(tmp_path), "v3-8")


def test_early_stopping_costs_the_same_for_each_evaluation(tmp_path, monkeypatch):
    """The best step is searched once, not once for each evaluation."""
    log, searches = metrics.MetricsLog(str(tmp_path), 0), []
    for step in range(1, 51):
        log.write(step, {"validation_loss": 1.0 + abs(step - 20)})
    best_step = metrics.MetricsLog.best_step.fget
    counted = property(lambda self: searches.append(1) or best_step(self))
    monkeypatch.setattr(metrics.MetricsLog, "best_step", counted)
    assert log.evaluations_since_best == 30
    assert len(searches) == 1
