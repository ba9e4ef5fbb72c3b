"""A run that is interrupted continues as if nothing had happened."""

import hashlib
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from configs.errors import DataError, RunError
from tests.conftest import tiny_config, write_dataset
from tests.data_pipeline.runs import run as preprocess
from tfrecords import checksums, reader, schema
from trainer.callbacks.guard import DivergenceGuard
from trainer.callbacks.saving import Saving
from trainer.checkpoints import run_checkpoints
from trainer.checkpoints import tensor_file as states
from trainer.evaluation.scoring import Scorer
from trainer.run_dir import metrics
from trainer.runtime import preemption
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.training.loop import train


def run(
    dataset,
    workdir,
    *,
    num_replicas=1,
    until=None,
    optimizer="adafactor",
    learning_rate=5e-5,
    **overrides,
):
    """Trains to the end, or is interrupted after `until` steps."""
    config = tiny_config(
        **{
            "num_steps": 8,
            "dropout": 0.1,
            "checkpoint_interval": 1,
            "evaluation_interval": 3,
            **overrides,
        }
    )
    config.optimizer.name = optimizer
    config.optimizer.learning_rate = learning_rate
    strategy = mirror_cpu(num_replicas)
    if until is None:
        train(config, str(dataset[0]), str(workdir), Cluster(strategy))
        return

    class StopError(Exception):
        pass

    save = run_checkpoints.Checkpoints.save

    def save_and_stop(self, best_step):
        save(self, best_step)
        self.close()
        if int(self._optimizer.iterations.numpy()) == until:
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_checkpoints.Checkpoints, "save", save_and_stop)
        with pytest.raises(StopError):
            train(config, str(dataset[0]), str(workdir), Cluster(strategy))


def state(workdir, step=8):
    """Every variable of a checkpoint: weights, optimizer slots, step."""
    folder = workdir / "checkpoints" / f"step-{step:08d}"
    return safetensors.numpy.load_file(folder / "state.safetensors")


def values(workdir):
    """The metrics without what a clock measured."""
    return [
        {k: v for k, v in line.items() if k != "tokens_per_second"}
        for line in metrics.load(str(workdir))
    ]


def compile_nothing(patch):
    """Turns XLA off: where only files matter, it would take most of the time."""
    patch.setattr("trainer.runtime.strategy.compiles_local_work", lambda *_: False)


@pytest.fixture
def uncompiled(monkeypatch):
    compile_nothing(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tokens):
    """The workdir of an undisturbed run on `dataset`, with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_dataset(
        folder / "data",
        train_tokens=tokens,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    with pytest.MonkeyPatch.context() as patch:
        compile_nothing(patch)
        run((folder / "data", data), folder / "run", keep_last=8)
    return folder / "run"


@pytest.fixture
def stopped(whole, tmp_path):
    """A function that makes `tmp_path / "run"`: the run, stopped after a step.

    As a kill leaves it: the metrics go on, the newer checkpoints are not there.
    """

    def copy(step):
        shutil.copytree(whole, tmp_path / "run")
        for folder in (tmp_path / "run" / "checkpoints").iterdir():
            if folder.name > f"step-{step:08d}":
                shutil.rmtree(folder)
        return tmp_path / "run"

    return copy


def assert_same_state(workdir, whole):
    actual, expected = state(workdir), state(whole)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(actual[key], value, err_msg=key)


@pytest.mark.parametrize(
    "name",
    [
        "adafactor",
        pytest.param("adamw", marks=pytest.mark.slow),
        pytest.param("muon", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_equals_an_undisturbed_one(dataset, tmp_path, name):
    """Over an epoch's end, with dropout and accumulation, stopped twice."""
    run(dataset, tmp_path / "whole", optimizer=name)
    for until in (3, 4, None):
        run(dataset, tmp_path / "stopped", until=until, optimizer=name)
    assert any("optimizer" in key for key in state(tmp_path / "whole"))
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")
    assert values(tmp_path / "stopped") == values(tmp_path / "whole")


@pytest.fixture
def batch_hashes(monkeypatch):
    """Fills with {step: hash of the global batch} while runs read their batches."""
    found = {}
    training_batches = reader.training_batches

    def recorded(*args, start_step, global_batch_size, **kwargs):
        batches = training_batches(
            *args, start_step=start_step, global_batch_size=global_batch_size, **kwargs
        )
        rows = []

        def record(tokens, row):
            rows.extend(zip(row.tolist(), tokens.tolist(), strict=True))
            while len(rows) >= global_batch_size:
                step = start_step + record.num_steps
                batch = sorted(rows[:global_batch_size])
                found[step] = hashlib.sha256(repr(batch).encode()).hexdigest()
                del rows[:global_batch_size]
                record.num_steps += 1
            return np.int32(0)

        record.num_steps = 0

        def passed(batch):
            seen = tf.numpy_function(record, [batch["tokens"], batch["row"]], tf.int32)
            with tf.control_dependencies([seen]):
                return {name: tf.identity(value) for name, value in batch.items()}

        return batches.map(passed)

    monkeypatch.setattr(reader, "training_batches", recorded)
    return found


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("more", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_continuing_on_other_replicas_reads_the_same_batches(
    dataset, tmp_path, batch_hashes, more
):
    """On 2, then more, then 1, for more than two epochs of 30 records."""
    sizes = {"global_batch_size": 8, "microbatch_size": 1, "num_steps": 9}
    sizes["evaluation_interval"] = 0  # test_scoring scores on several replicas
    run(dataset, tmp_path / "whole", **sizes)
    whole = dict(batch_hashes)
    batch_hashes.clear()
    moved = {}
    for num_replicas, start, stop in ((2, 0, 3), (more, 3, 6), (1, 6, 9)):
        until = stop if stop < 9 else None
        run(
            *(dataset, tmp_path / "moved"),
            **{**sizes, "microbatch_size": 1 if num_replicas > 1 else 4},
            num_replicas=num_replicas,
            until=until,
        )
        # What was read ahead of the stop is read again.
        moved |= {step: batch_hashes[step] for step in range(start, stop)}
        batch_hashes.clear()
    assert moved == whole
    assert len(set(whole.values())) == 9
    for a, b in zip(
        values(tmp_path / "moved"), values(tmp_path / "whole"), strict=True
    ):
        # Where a row's gradients are tiny, Adafactor's update is mostly rounding.
        norms = [line.pop("update_norm", 0.0) for line in (a, b)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-2)
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.usefixtures("uncompiled")
def test_documents_are_trained_on_whatever_their_padding_and_labels(tmp_path):
    text = "\n".join(json.dumps({"text": "a b " * i, "label": i}) for i in range(1, 60))
    (tmp_path / "a.jsonl").write_text(text)
    metrics_by_mode = []
    for mode, side in (("document", "right"), ("labelled", "left")):
        data, workdir = (tmp_path / f"{mode}-{side}-{name}" for name in ("data", "run"))
        written = preprocess(
            tmp_path / "a.jsonl",
            data,
            mode=mode,
            padding_side=side,
            sequence_length=8,
            vocab_size=300,
        )
        run((data, written), workdir)
        metrics_by_mode.append(values(workdir))
    first, second = metrics_by_mode
    assert first == second
    assert first[-1]["validation_loss"] < first[0]["validation_loss"]


@pytest.mark.usefixtures("uncompiled")
def test_a_finished_run_is_left_alone(dataset, stopped):
    workdir = stopped(8)
    before = (workdir / "metrics.jsonl").read_text()
    run(dataset, workdir)
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.usefixtures("uncompiled")
def test_executions_that_straddle_an_interval_still_save_and_score(
    dataset, tmp_path, stopped
):
    stopped(1)
    settings = {"checkpoint_interval": 3, "evaluation_interval": 3}
    run(dataset, tmp_path / "run", steps_per_execution=3, keep_last=9, **settings)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [int(name[-2:]) for name in names] == [1, 4, 7, 8]
    scored = [v["step"] for v in values(tmp_path / "run") if "validation_loss" in v]
    assert scored == [0, 4, 7, 8]


@pytest.mark.usefixtures("uncompiled")
def test_which_checkpoints_stay(dataset, tmp_path):
    settings = {"keep_last": 2, "keep_every": 3, "evaluation_interval": 0}
    run(dataset, tmp_path / "run", **settings)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step-{step:08d}" for step in (3, 6, 7, 8)]


@pytest.mark.usefixtures("uncompiled")
def test_a_torn_save_is_removed_and_the_one_before_it_continues(
    dataset, whole, stopped
):
    workdir = stopped(5)
    torn = workdir / "checkpoints" / "step-00000005"
    (torn / "checkpoint.json").unlink()  # killed after the data, before the record
    run(dataset, workdir, checkpoint_interval=0)  # which does not save it anew
    assert not torn.exists()
    assert_same_state(workdir, whole)


@pytest.mark.usefixtures("uncompiled")
def test_a_workdir_of_another_config_is_refused(dataset, stopped):
    workdir = stopped(2)
    with pytest.raises(DataError) as error:
        run(dataset, workdir, seed=5, num_steps=9)
    assert "training.seed: 0 in the workdir, 5 now" in str(error.value)
    assert "training.num_steps: 8 in the workdir, 9 now" in str(error.value)
    # How it is carried out may change.
    run(
        dataset,
        workdir,
        microbatch_size=4,
        steps_per_execution=3,
        checkpoint_interval=0,
        evaluation_interval=0,
    )


@pytest.mark.usefixtures("uncompiled")
def test_a_workdir_of_another_dataset_is_refused(tmp_path, tokens, stopped):
    workdir = stopped(2)
    other = tmp_path / "other"
    written = write_dataset(
        other,
        train_tokens=tokens + 1 - tokens // 96,
        validation_tokens=tokens[:83],
        sequence_length=8,
    )
    with pytest.raises(DataError, match="belong to the dataset"):
        run((other, written), workdir)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change_the_step(path):
    record = checksums.unsealed(json.loads(path.read_text()))
    path.write_text(json.dumps({**record, "step": 3}))


DAMAGES = [
    (lambda f: change_the_step(f / "checkpoint.json"), "its step is 3"),
    (lambda f: flip_a_bit(f / "checkpoint.json"), "is damaged"),
    (lambda f: (f / "checkpoint.json").write_text("{"), "is damaged"),
    (lambda f: (f / "checkpoint.json").write_text("[]"), "is damaged"),
    (lambda f: (f / "state.safetensors").write_bytes(b"x" * 50), "It has 50 and"),
    (lambda f: flip_a_bit(f / "state.safetensors"), "the SHA-256"),
    (lambda f: (f / "state.safetensors").unlink(), "is missing"),
]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_checkpoint_never_means_a_new_start(
    dataset, stopped, damage, message
):
    workdir = stopped(1)
    damage(workdir / "checkpoints" / "step-00000001")
    with pytest.raises(DataError, match=message):
        run(dataset, workdir)
    with pytest.raises(DataError, match=message):
        run_checkpoints.load_model(str(workdir))


@pytest.mark.usefixtures("uncompiled")
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_continues(
    dataset, whole, stopped, caplog
):
    workdir = stopped(5)
    folder = workdir / "checkpoints"
    flip_a_bit(folder / "step-00000005" / "state.safetensors")
    damaged = (folder / "step-00000005" / "state.safetensors").read_bytes()
    assert run_checkpoints.load_model(str(workdir)).record.step == 4
    assert (folder / "step-00000005").exists()  # reading changes nothing
    run(dataset, workdir)
    assert "step-00000004 instead" in caplog.text
    kept = folder / "step-00000005.damaged" / "state.safetensors"
    assert kept.read_bytes() == damaged
    assert_same_state(workdir, whole)


@pytest.mark.usefixtures("uncompiled")
def test_a_save_that_fails_stops_the_run(dataset, tmp_path):
    """It happens in a thread; the run must hear of it."""
    folder = tmp_path / "run" / "checkpoints"

    class InTheWay(Saving):
        def on_train_begin(self, logs=None):
            super().on_train_begin(logs)
            folder.mkdir(parents=True)
            (folder / "step-00000003").write_text("a file where the folder should be")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.training.loop.Saving", InTheWay)
        with pytest.raises(RunError, match="Step 3 could not be saved"):
            run(dataset, tmp_path / "run", keep_last=8)
    assert run_checkpoints.load_model(str(tmp_path / "run")).record.step == 2


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("stops", "options"),
    [
        # One after the other in one workdir, at steps 0, 3 and 8.
        ((1, 2, 3), {}),
        # The third score is the second that is no better: it ends the run.
        ((3,), {"learning_rate": 10.0, "early_stopping_patience": 1}),
    ],
)
def test_a_run_that_is_stopped_while_it_scores(
    dataset, tmp_path, monkeypatch, stops, options
):
    """Each start of the trainer is stopped at its n-th score; the last is not."""
    settings = {"checkpoint_interval": 0, "optimizer": "sgd", **options}
    run(dataset, tmp_path / "whole", **settings)
    score = Scorer.__call__
    for number in stops:
        remaining = iter(range(number - 1))

        def stopped(self, *arguments):
            if next(remaining, None) is None:
                raise preemption.PreemptedError("stopped")
            return score(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "__call__", stopped)
            with pytest.raises(preemption.PreemptedError):
                run(dataset, tmp_path / "run", **settings)
    run(dataset, tmp_path / "run", **settings)
    assert values(tmp_path / "run") == values(tmp_path / "whole")


@pytest.mark.usefixtures("uncompiled")
def test_a_second_signal_does_not_tear_the_save(dataset, tmp_path, monkeypatch, whole):
    settings = {"checkpoint_interval": 0, "evaluation_interval": 0}
    passed_on, write = [], states.write
    previous = signal.signal(signal.SIGTERM, lambda *_: passed_on.append(True))

    def disturbed(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return write(*arguments)

    def first(self, *_, **__):
        if int(self.model.optimizer.iterations.numpy()) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(states, "write", disturbed)
            patch.setattr(DivergenceGuard, "on_train_batch_end", first)
            with pytest.raises(preemption.PreemptedError, match="SIGTERM"):
                run(dataset, tmp_path / "run", **settings)
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert not passed_on
    assert state(tmp_path / "run", step=3)
    run(dataset, tmp_path / "run", **settings)
    assert_same_state(tmp_path / "run", whole)


@pytest.mark.usefixtures("uncompiled")
def test_early_stopping_and_the_best_checkpoint(dataset, tmp_path):
    """At this learning rate the validation loss soon rises."""
    options = {
        "num_steps": 30,
        "checkpoint_interval": 0,
        "evaluation_interval": 2,
        "early_stopping_patience": 3,
        "keep_last": 1,
        "learning_rate": 0.5,
    }
    run(dataset, tmp_path / "run", **options)
    lines = metrics.load(str(tmp_path / "run"))
    losses = {x["step"]: x["validation_loss"] for x in lines if "validation_loss" in x}
    del losses[0]
    best = min(losses, key=losses.get)
    assert best + 3 * 2 == max(losses) < 30
    found = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert found == [f"step-{best:08d}", f"step-{max(losses):08d}"]
    before = sorted((tmp_path / "run").rglob("*"))
    run(dataset, tmp_path / "run", **options)  # is finished, and stays so
    assert sorted((tmp_path / "run").rglob("*")) == before
    assert metrics.load(str(tmp_path / "run")) == lines
    run(dataset, tmp_path / "run", **options | {"early_stopping_patience": 0})
    assert metrics.load(str(tmp_path / "run"))[-1]["step"] == 30


@pytest.mark.usefixtures("uncompiled")
def test_weights_that_are_no_numbers_are_neither_saved_nor_restored(dataset, stopped):
    workdir = stopped(2)
    folder = workdir / "checkpoints" / "step-00000002"
    values = state(workdir, step=2)
    name = "model/transformer/ln_f/gamma"
    values[name] = np.full_like(values[name], np.nan)
    with pytest.raises(DataError, match=f"not finite: {name}"):
        states.write(values, str(folder / "state.safetensors"))
    safetensors.numpy.save_file(values, folder / "state.safetensors")
    vouch(folder)
    with pytest.raises(DataError, match=f"not finite: {name}"):
        run(dataset, workdir)


@pytest.mark.usefixtures("uncompiled")
def test_other_variables_are_named(dataset, stopped):
    workdir = stopped(2)
    folder = workdir / "checkpoints" / "step-00000002"
    values = state(workdir, step=2)
    values["model/more"] = values.pop("model/transformer/ln_f/beta")
    values["model/transformer/ln_f/gamma"] = np.ones(3, np.float32)
    values["optimizer/iteration"] = values["optimizer/iteration"].astype(np.int32)
    safetensors.numpy.save_file(values, folder / "state.safetensors")
    vouch(folder)
    with pytest.raises(DataError) as error:
        run(dataset, workdir)
    for problem in (
        "model/transformer/ln_f/beta is missing",
        "model/more is not expected",
        "model/transformer/ln_f/gamma is float32 [3], not float32 [16]",
        "optimizer/iteration is int32 [], not int64 []",
    ):
        assert problem in str(error.value)


def vouch(folder):
    """Writes the checksum of what is in the folder into its record."""
    path = folder / "checkpoint.json"
    content = (folder / "state.safetensors").read_bytes()
    record = checksums.unsealed(json.loads(path.read_text()))
    record["state_bytes"] = len(content)
    record["state_sha256"] = hashlib.sha256(content).hexdigest()
    path.write_text(json.dumps(record))


@pytest.mark.usefixtures("uncompiled")
def test_another_format_version_is_refused(dataset, stopped):
    workdir = stopped(2)
    path = workdir / "checkpoints" / "step-00000002" / "checkpoint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))
    with pytest.raises(DataError, match="Received: 9"):
        run(dataset, workdir)


@pytest.mark.usefixtures("uncompiled")
def test_a_diverged_run_stops_and_keeps_what_was_good(dataset, tmp_path):
    """The first update is absurd; all that follow are skipped."""
    options = {"optimizer": "sgd", "learning_rate": 1e30, "max_skipped_in_a_row": 3}
    with pytest.raises(RunError, match="smaller `optimizer") as error:
        run(dataset, tmp_path / "run", keep_last=8, **options)
    assert "The last 3 updates, up to step 4, were skipped" in str(error.value)
    batch = reader.training_batches(
        str(dataset[0]),
        dataset[1],
        global_batch_size=4,
        batch_size=4,
        start_step=3,
        num_steps=4,
        seed=0,
    )
    named = re.findall(r"(train-\S+), record (\d+)", str(error.value))
    stored = []
    for name, number in named:
        records = tf.stack(list(tf.data.TFRecordDataset(str(dataset[0] / name))))
        stored += [
            schema.parse(
                records[int(number) :][:1],
                sequence_length=8,
                dtype=dataset[1].dtype,
                labelled=False,
            )["tokens"][0]
        ]
    np.testing.assert_array_equal(stored, next(iter(batch))["tokens"])
    lines = metrics.load(str(tmp_path / "run"))
    skipped = [x["skipped_updates"] for x in lines if "skipped_updates" in x]
    assert skipped == [0, 1, 2, 3]
    assert all(np.isfinite(value) for line in lines for value in line.values())
    assert "loss" not in lines[-1]
    first, third = (state(tmp_path / "run", step=step) for step in (1, 3))
    for name, value in first.items():
        assert np.isfinite(value).all()
        if not name.startswith("skipped") and name != "optimizer/iteration":
            np.testing.assert_array_equal(third[name], value, err_msg=name)


@pytest.mark.parametrize(("asked", "step"), [(0, 8), (7, 7)])
def test_a_model_loads_without_its_optimizer(whole, asked, step):
    """The newest, or that of an earlier step."""
    loaded = run_checkpoints.load_model(str(whole), step=asked)
    assert loaded.record.step == step
    stored = state(whole, step)
    for name, variable in states.named("model", loaded.model.variables).items():
        np.testing.assert_array_equal(variable, stored[name], err_msg=name)


def test_a_model_of_a_step_without_checkpoint(stopped):
    with pytest.raises(DataError, match=r"1, 2, 3\. Received: 7"):
        run_checkpoints.load_model(str(stopped(3)), step=7)


def test_a_workdir_without_checkpoint(tmp_path):
    with pytest.raises(DataError, match="which has none"):
        run_checkpoints.load_model(str(tmp_path))


@pytest.mark.usefixtures("uncompiled")
def test_a_shard_that_is_replaced_while_it_is_read_is_noticed(dataset, tmp_path):
    """By the same bytes, or by others that also are whole records."""
    folder, _ = dataset
    shard = folder / "train-00001-of-00003.tfrecord"

    def replace(*_, **__):
        shard.with_suffix(".new").write_bytes(shard.read_bytes())
        shard.with_suffix(".new").rename(shard)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DivergenceGuard, "on_train_begin", replace)
        patch.setattr(DivergenceGuard, "on_train_batch_end", lambda *_, **__: None)
        message = "Changed since its start: train-00001-of-00003.tfrecord"
        with pytest.raises(DataError, match=message):
            run(dataset, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*"))


@pytest.mark.usefixtures("uncompiled")
def test_a_disk_without_room_stops_the_run_before_it_starts(
    dataset, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(RunError, match="MB free for what goes to"):
        run(dataset, tmp_path / "run")


@pytest.mark.usefixtures("uncompiled")
def test_a_model_that_learns_by_heart_says_so(tmp_path, caplog):
    tokens = np.random.default_rng(0).integers(0, 97, 640)
    data = write_dataset(
        tmp_path / "data",
        train_tokens=tokens[:320],
        validation_tokens=tokens[320:],
        sequence_length=8,
    )
    run(
        (tmp_path / "data", data),
        tmp_path / "run",
        dropout=0.0,
        num_steps=450,
        steps_per_execution=10,
        evaluation_interval=50,
        checkpoint_interval=0,
        learning_rate=1e-2,
        optimizer="adamw",
    )
    lines = values(tmp_path / "run")
    levels = [line["memorization"] for line in lines if "memorization" in line]
    assert levels[:2] == [0, 0]
    assert levels[-1] == 2
    assert "320 tokens are" in caplog.text
    assert "the model memorizes the training text" in caplog.text
