"""The plan, by the real TPU compiler: what it says, and what it refuses."""

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from configs import tpu
from configs.errors import UserError
from configs.schema import Config, TrainingConfig
from tests import programs
from tests.conftest import (
    VOCABULARY_SIZE,
    assert_refused,
    tiny_model,
    training_step,
    write_dataset,
)
from trainer.optimizers.skip_nonfinite import SkippingSGD
from trainer.planning import compilation, planner
from trainer.run_dir import plans
from trainer.tasks import causal_lm

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the extra `plan`"
)
KEYS = {
    *("tpu_type", "num_replicas", "fits", "hbm_available_bytes", "argument_bytes"),
    *("temporary_bytes", "peak_bytes", "parameter_count", "optimizer_state_bytes"),
    *("flops_per_step", "step_seconds_lower_bound", "microbatch_size"),
    *("accumulation_steps", "max_microbatch_size", "remat", "compile_seconds"),
}
SMALL = (
    "--config=configs/quickstart.py",
    "--config.training.precision=bfloat16",
    "--config.model.n_layer=1",
    "--config.model.n_embd=128",
    "--config.optimizer.name=adafactor",
    "--config.training.global_batch_size=512",
    "--config.training.microbatch_size=16",
)


def run_plan(*arguments):
    # As users have them: conftest's are not meant for the TPU's compiler.
    process = programs.run("trainer.plan", "--json", *arguments, XLA_FLAGS="")
    assert "Traceback" not in process.stderr, process.stderr
    lines = process.stdout.splitlines()
    return process, json.loads(lines[-1]) if lines else None


@pytest.mark.parametrize(
    ("fitting", "taken"),
    [
        ({"none", "attention", "block"}, "none"),
        ({"attention", "block"}, "attention"),
        ({"block"}, "block"),
        (set(), "block"),
    ],
)
def test_a_plan_with_auto_takes_the_first_policy_that_fits(fitting, taken):
    def compiled(*, remat, **_):
        return {"fits": remat in fitting, "peak_bytes": 1}

    settings = TrainingConfig(remat="auto")
    remat, found, largest = planner.compile_first_that_fits(
        compiled, settings, 1, 2**34, find_max=False
    )
    assert (remat, found["fits"], largest) == (taken, bool(fitting), None)


@needs_compiler
@pytest.mark.parametrize(
    ("tpu_type", "num_replicas", "accumulation_steps"),
    [
        ("v2-8", 8, 4),
        ("v3-8", 8, 4),
        ("v4-8", 4, 8),
        ("v5e-8", 8, 4),
    ],
)
@pytest.mark.slow
def test_the_real_step_compiles(tpu_type, num_replicas, accumulation_steps):
    process, found = run_plan(*SMALL, f"--tpu_type={tpu_type}")
    assert process.returncode == 0, process.stderr
    assert set(found) >= KEYS
    assert found["fits"]
    assert found["num_replicas"] == num_replicas
    assert found["accumulation_steps"] == accumulation_steps
    assert 0 < found["temporary_bytes"] < found["peak_bytes"]
    assert found["peak_bytes"] < found["hbm_available_bytes"]
    assert found["replicas_added_up"] == num_replicas
    # Weights, factored optimizer state and batch, some padded; all are arguments.
    weights = 4 * found["parameter_count"]
    assert weights < found["argument_bytes"] < 1.2 * weights + 1e6
    assert found["optimizer_state_bytes"] < 0.1 * weights
    assert found["step_seconds_lower_bound"] > 0


@needs_compiler
def test_every_replica_of_a_pod_takes_part_in_the_sum():
    process, found = run_plan(*SMALL, "--tpu_type=v3-32")
    assert process.returncode == 0, process.stderr
    assert (found["num_replicas"], found["accumulation_steps"]) == (32, 1)
    assert found["replicas_added_up"] == 32


SIGNATURE = causal_lm.TASK.signature(batch_size=2, sequence_length=8)


def tiny_step(all_reduce):
    """A step that does what `all_reduce` does to (loss, count, gradients)."""
    step = training_step(tiny_model(n_layer=1), all_reduce=all_reduce)
    step.compile(optimizer=SkippingSGD(0.1, jit_compile=False))
    return step


def test_a_step_with_a_host_op_is_refused():
    def on_the_host(values):
        loss, count, gradients = values
        loss = tf.py_function(lambda x: x, [loss], tf.float32)
        loss.set_shape([])
        return loss, count, gradients

    with pytest.raises(UserError, match="nothing of it may run on the host"):
        compilation.lower(tiny_step(on_the_host).train_step, SIGNATURE)


@needs_compiler
def test_a_step_with_a_dynamic_shape_is_refused():
    def of_unknown_size(values):
        loss, count, gradients = values
        nonzero = tf.boolean_mask(gradients[0], gradients[0] != 0)
        return loss + tf.reduce_sum(nonzero), count, gradients

    hlo = compilation.lower(tiny_step(of_unknown_size).train_step, SIGNATURE)
    found = compilation.compile_hlo(hlo, tpu.parse("v3-8"))
    assert not found["fits"]
    assert "dynamic shape" in found["message"]
    hlo = compilation.lower(tiny_step(lambda values: values).train_step, SIGNATURE)
    assert compilation.compile_hlo(hlo, tpu.parse("v3-8"))["fits"]


@needs_compiler
@pytest.mark.parametrize("generation", tpu.GENERATIONS)
def test_available_memory_is_what_the_compiler_says(generation):
    """Of a program that is too large, its words; they are the table's figure."""

    @tf.function(jit_compile=True)
    def too_large(x):
        return tf.matmul(x, x, transpose_b=True)

    spec = tf.TensorSpec([400_000, 8], tf.float32)
    hlo = too_large.experimental_get_compiler_ir(spec)(stage="hlo_serialized")
    name = next(name for name in tpu.names() if name.startswith(f"{generation}-"))
    found = compilation.compile_hlo(hlo, tpu.parse(name))
    gib = tpu.GENERATIONS[generation].hbm_bytes / 2**30
    assert not found["fits"]
    assert f"exceeds available HBM ({gib:.2f}G)" in found["message"]


@pytest.mark.parametrize("largest", [0, 1, 2, 7, 8, 63, 100, 1000])
@pytest.mark.parametrize("start", [1, 8])
@pytest.mark.parametrize("curve", [1.0, 0.9, 1.1])
def test_the_largest_microbatch_fits_and_one_more_does_not(largest, start, curve):
    hbm = 10**9
    tried = {}

    def compiled(size):
        # What fits grows as the compiler's peaks do: almost in proportion.
        tried[size] = size <= largest
        share = (size / max(largest, 1)) ** curve
        peak = int(0.3 * hbm + 0.69 * hbm * share)
        return {"fits": size <= largest, "peak_bytes": min(peak, hbm)}

    assert planner.largest_microbatch(compiled, start, hbm) == largest
    assert tried[largest + 1] is False
    assert not largest or tried[largest]
    assert len(tried) <= 24


def test_warnings_of_few_shards_and_little_text(tmp_path):
    tokens = np.arange(400) % VOCABULARY_SIZE
    manifest = write_dataset(
        tmp_path / "data",
        train_tokens=tokens,
        validation_tokens=tokens[:40],
        sequence_length=8,
    )
    found = planner.warnings(Config(), manifest, tpu.parse("v3-32"), 124_000_000)
    assert "3 shards are too few for the 4 hosts of a v3-32" in found[0]
    assert "400 tokens are 3.2e-06 for each parameter" in found[1]
    assert not planner.warnings(Config(), manifest, tpu.parse("v3-8"), 400)


def test_errors_are_one_message():
    for arguments, message in (
        ((), "`--tpu_type` is missing"),
        (("--tpu_type=v9-8",), "A TPU type must be one of"),
        (
            ("--tpu_type=v3-128",),
            "multiple of microbatch_size x num_replicas (16 x 128)",
        ),
    ):
        found = programs.run("trainer.plan", *SMALL, *arguments)
        assert_refused(found, message)
        assert found.stdout == ""


@needs_compiler
@pytest.mark.slow
def test_what_is_computed_again_is_not_kept():
    """The compiler must not merge it with the first computation."""
    kept = {}
    for remat in ("none", "attention", "block"):
        deeper = ("--config.model.n_layer=4", f"--config.training.remat={remat}")
        _, found = run_plan(*SMALL, *deeper, "--tpu_type=v3-8")
        kept[remat] = found["temporary_bytes"]
    assert kept["block"] < 0.8 * kept["attention"] < 0.8 * 0.95 * kept["none"]


@needs_compiler
@pytest.mark.slow
def test_accumulation_needs_room_for_one_set_of_gradients():
    """And not for all weights rounded to bfloat16, which XLA would keep."""
    kept = {}
    for global_batch_size in (128, 2048):
        _, found = run_plan(
            *SMALL,
            *("--config.model.n_layer=4", "--config.model.n_embd=512"),
            "--config.training.remat=block",
            f"--config.training.global_batch_size={global_batch_size}",
            "--tpu_type=v3-8",
        )
        kept[found["accumulation_steps"]] = found["temporary_bytes"]
    assert list(kept) == [1, 16]
    # Measured: 1.05 sets; 1.37 where weights rounded to bfloat16 are kept.
    assert kept[16] - kept[1] < 1.1 * 4 * found["parameter_count"]


@needs_compiler
@pytest.mark.slow
def test_gpt2_small_on_a_v3_8():
    process, found = run_plan("--config=configs/gpt2_small.py", "--tpu_type=v3-8")
    assert process.returncode == 0, process.stderr
    assert found["fits"]
    assert found["parameter_count"] == 124_439_808
    assert found["optimizer_state_bytes"] < 0.01 * 4 * found["parameter_count"]


@needs_compiler
@pytest.mark.slow
def test_what_does_not_fit_is_refused_and_what_fits_is_found(tmp_path):
    """Two layers of GPT-2 small's width, with nothing recomputed."""
    arguments = (
        "--config=configs/quickstart.py",
        "--tpu_type=v2-8",
        *("--config.model.n_layer=2", "--config.model.n_embd=768"),
        *("--config.model.n_head=12", "--config.model.n_positions=1024"),
        "--config.data.sequence_length=1024",
        "--config.training.precision=bfloat16",
        "--config.training.remat=none",
        *("--config.training.dropout=0", "--config.optimizer.name=adafactor"),
        "--config.training.global_batch_size=2048",
        "--config.training.microbatch_size=256",
    )
    process, found = run_plan(*arguments)
    assert process.returncode == 2
    assert not found["fits"]
    assert "RESOURCE_EXHAUSTED" in found["message"]
    assert "exceeds available HBM (7.48G)" in found["message"]
    assert found["message"] in process.stderr

    process, found = run_plan(
        *arguments, "--find_max_microbatch", f"--workdir={tmp_path}"
    )
    largest = found["max_microbatch_size"]
    assert process.returncode == 0
    assert 16 <= largest < 256
    assert f"microbatch {largest}, remat none: peak" in process.stderr
    assert f"microbatch {largest + 1}, remat none: too large" in process.stderr
    assert plans.load(str(tmp_path), "v2-8") == found


@needs_compiler
@pytest.mark.slow
def test_a_pod_of_128_replicas():
    process, found = run_plan(
        *SMALL, "--tpu_type=v3-128", "--config.training.global_batch_size=2048"
    )
    assert process.returncode == 0, process.stderr
    assert found["num_replicas"] == 128
    assert found["fits"]
    assert found["replicas_added_up"] == 128
