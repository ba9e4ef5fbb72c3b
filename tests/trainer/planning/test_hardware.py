"""Expected and detected hardware: stop, adapt, and what a plan allows."""

import copy
import dataclasses
import functools
import re

import pytest

from configs import tpu
from configs.errors import DataError, UserError
from configs.schema import Config
from configs.validation import validate
from tests import programs
from tfrecords import schema
from tfrecords.manifest import Manifest
from trainer.models.create import model_configuration
from trainer.planning import hardware
from trainer.run_dir import plans
from trainer.runtime import strategy as strategies
from trainer.runtime.strategy import DetectedHardware

V3, V2 = (DetectedHardware("TPU", 8, tpu.parse(name)) for name in ("v3-8", "v2-8"))
CPU = DetectedHardware("CPU", 2)
MANIFEST = Manifest(
    format_version=schema.FORMAT_VERSION,
    sequence_length=1024,
    token_dtype="uint16",
    vocabulary_size=50257,
    end_of_text_id=50256,
    pad_id=50256,
    padding_side="right",
    tokenizer_fingerprint="",
    tokenizer_engine="",
    added_tokens=(),
    mode="packed",
    config={},
    splits={},
)


def config(**training) -> Config:
    made = Config()
    made.hardware.tpu_type = "v3-8"
    made.training = dataclasses.replace(
        made.training, global_batch_size=512, microbatch_size=32, **training
    )
    return made


def save_plan(workdir, made, name, **values):
    plan = {
        "tpu_type": name,
        "fits": True,
        "microbatch_size": made.training.microbatch_size,
        "max_microbatch_size": None,
        "remat": "none",
        "accumulation_steps": 2,
        "planned_for": hardware.plan_key(
            made, model_configuration(made.model, MANIFEST), MANIFEST.sequence_length
        ),
        **values,
    }
    plans.save(str(workdir), plan)


def resolve(made, detected, workdir):
    """Returns the resolved `training`; the config passed in must stay as it is."""
    before = copy.deepcopy(made)
    load_plan = functools.partial(plans.load, str(workdir))
    resolved = hardware.resolve_hardware_config(made, MANIFEST, detected, load_plan)
    assert made == before
    return resolved.training


def test_the_expected_hardware_changes_nothing(tmp_path):
    assert resolve(config(), V3, tmp_path) == config().training


@pytest.mark.parametrize("detected", [V2, CPU])
def test_other_hardware_stops_with_both_names(tmp_path, detected):
    with pytest.raises(UserError) as error:
        resolve(config(), detected, tmp_path)
    assert "v3-8 (8 replicas of 15.48 GiB)" in str(error.value)
    assert detected.name in str(error.value)
    assert "on_mismatch=adapt" in str(error.value)


def test_no_run_adapts_to_a_cpu(tmp_path):
    made = config()
    made.hardware.on_mismatch = "adapt"
    with pytest.raises(UserError, match="CPU x 2"):
        resolve(made, CPU, tmp_path)


def test_a_smaller_tpu_gets_smaller_microbatches_of_the_same_global_batch(tmp_path):
    made = config()
    made.hardware.on_mismatch = "adapt"
    save_plan(tmp_path, made, "v2-8", max_microbatch_size=20)
    resolved = resolve(made, V2, tmp_path)
    # 64 sequences a replica: 16 is the largest divisor up to 20.
    assert (resolved.global_batch_size, resolved.microbatch_size) == (512, 16)
    assert strategies.accumulation_steps(resolved, 8) == 4


def test_adapting_needs_a_plan_of_this_model(tmp_path):
    made = config()
    made.hardware.on_mismatch = "adapt"
    with pytest.raises(UserError, match="not found"):
        resolve(made, V2, tmp_path)
    save_plan(tmp_path, made, "v2-8", max_microbatch_size=20)
    made.model.n_layer = 24
    with pytest.raises(UserError, match="n_layer 12, not 24"):
        resolve(made, V2, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"planned_for": 3}'])
def test_a_damaged_plan_is_one_message(tmp_path, text):
    made = config(remat="auto")
    save_plan(tmp_path, made, "v3-8")
    (tmp_path / "plans" / "v3-8.json").write_text(text)
    with pytest.raises(DataError, match="is damaged"):
        resolve(made, V3, tmp_path)


def test_a_plan_without_accumulation_is_not_one_with(tmp_path):
    made = config(remat="auto")
    save_plan(tmp_path, made, "v3-8", accumulation_steps=1)
    with pytest.raises(UserError, match="32, accumulated; and a plan for 32 x 1"):
        resolve(made, V3, tmp_path)


def test_a_plan_of_another_architecture_is_not_taken(tmp_path):
    made = config(remat="auto")
    save_plan(tmp_path, made, "v3-8")
    other = copy.deepcopy(made)
    other.model.architecture = "algpt2"
    with pytest.raises(UserError, match="architecture None, not algpt2"):
        resolve(other, V3, tmp_path)


def test_a_plan_of_another_attention_is_not_taken(tmp_path):
    made = config(remat="auto")
    save_plan(tmp_path, made, "v3-8")
    other = copy.deepcopy(made)
    other.data.attention = "document"
    with pytest.raises(UserError, match="attention None, not document"):
        resolve(other, V3, tmp_path)


def test_adapting_stops_where_nothing_fits(tmp_path):
    made = config()
    made.hardware.on_mismatch = "adapt"
    save_plan(tmp_path, made, "v2-8", fits=False)
    with pytest.raises(UserError, match="No microbatch that fits a v2-8"):
        resolve(made, V2, tmp_path)


def test_auto_takes_what_the_plan_chose(tmp_path):
    made = config(remat="auto")
    with pytest.raises(UserError, match="A plan for v3-8 is needed"):
        resolve(made, V3, tmp_path)
    save_plan(tmp_path, made, "v3-8", remat="attention")
    assert resolve(made, V3, tmp_path).remat == "attention"
    # Larger than what was planned, but below what was found to fit.
    save_plan(tmp_path, made, "v3-8", microbatch_size=16, max_microbatch_size=40)
    assert resolve(made, V3, tmp_path).remat == "block"
    save_plan(tmp_path, made, "v3-8", microbatch_size=16)
    with pytest.raises(UserError, match="must say that the microbatch fits"):
        resolve(made, V3, tmp_path)


def test_auto_takes_a_tuned_microbatch_for_the_same_global_batch(tmp_path):
    made = config(remat="auto")
    tuned = {"microbatch_size": 64, "accumulation_steps": 1, "remat": "block"}
    for name in ("v3-8", "v2-8"):
        save_plan(tmp_path, made, name, tuned=tuned, global_batch_size=512)
    resolved = resolve(made, V3, tmp_path)
    assert (resolved.microbatch_size, resolved.remat) == (64, "block")
    made.hardware.on_mismatch = "adapt"
    resolved = resolve(made, V2, tmp_path)
    assert (resolved.microbatch_size, resolved.remat) == (64, "block")
    # What is set is not changed; nor is another global batch.
    made.training.remat = "none"
    with pytest.raises(UserError, match="remat auto, not none"):
        resolve(made, V2, tmp_path)
    assert resolve(made, V3, tmp_path).microbatch_size == 32
    made.training.remat = "auto"
    made.training.global_batch_size = 256
    assert resolve(made, V3, tmp_path).microbatch_size == 32


def test_auto_without_a_tpu_recomputes_nothing(tmp_path):
    made = config(remat="auto")
    made.hardware.tpu_type = ""
    assert resolve(made, CPU, tmp_path).remat == "none"


def test_a_tpu_that_does_not_tell_its_type_is_accepted(tmp_path):
    assert resolve(config(), DetectedHardware("TPU", 8), tmp_path) == config().training
    with pytest.raises(UserError, match="TPU x 4"):
        resolve(config(), DetectedHardware("TPU", 4), tmp_path)


def test_a_machine_is_believed_only_where_its_replicas_agree():
    assert strategies._tpu_type("v5litepod-8", 8) == tpu.parse("v5e-8")
    assert strategies._tpu_type("v3-8", 16) is None
    assert strategies._tpu_type("", 8) is None


@pytest.mark.parametrize(
    ("name", "num_replicas", "remedy"),
    [
        ("v3-32", 8, "one of its 4 hosts: give the TPU's name, `--tpu=NAME`"),
        ("v5litepod-16", 4, "one of its 4 hosts"),
        ("v3-8", 2, "End the program that holds the others"),
    ],
)
def test_a_part_of_a_tpu_is_refused(name, num_replicas, remedy):
    with pytest.raises(UserError, match=f"Received: {num_replicas}. .*{remedy}"):
        strategies._tpu_type(name, num_replicas)


def test_the_doctor_stops_on_other_hardware():
    found = programs.run(
        "trainer.doctor",
        "--config=configs/quickstart.py",
        "--config.hardware.tpu_type=v5e-8",
        "--tpu=none",
    )
    assert found.returncode == 2
    assert re.search(r"^hardware +CPU x 1$", found.stdout, re.MULTILINE)
    assert "expects v5e-8" in found.stderr
    assert "CPU x 1" in found.stderr
    assert "Traceback" not in found.stderr


def test_every_type_has_a_name_that_leads_back_to_it():
    for name in tpu.names():
        assert tpu.parse(name).name == name
    assert tpu.parse("v5litepod-16") == tpu.parse("v5e-16")
    assert (tpu.parse("v3-128").num_replicas, tpu.parse("v3-128").num_hosts) == (
        128,
        16,
    )
    assert tpu.parse("v4-8").num_replicas == 4
    assert tpu.parse("v6e-8").num_hosts == 1


@pytest.mark.parametrize("name", ["v3-9", "v1-8", "v3", "", "v3-8x"])
def test_unknown_types_are_refused(name):
    with pytest.raises(UserError, match="v3-8, v3-32"):
        tpu.parse(name)
    made = Config()
    made.hardware.tpu_type = name or "none"
    with pytest.raises(UserError, match=r"hardware\.tpu_type"):
        validate(made)
