"""Tests that every config is valid, and that every problem is reported at once."""

import dataclasses
import importlib
import math
import operator
import subprocess
import sys

import pytest

from configs import schema, validation
from configs.errors import UserError
from tests.conftest import ROOT, assert_refused, run_program

FILES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if "\ndef get_config" in path.read_text()
)


@pytest.mark.parametrize("name", FILES)
def test_every_config_is_valid_and_documented(name):
    module = importlib.import_module(f"configs.{name}")
    validation.validate(module.get_config())
    for heading in ("Command", "Hardware", "Expected"):
        assert f"\n{heading} " in module.__doc__


@pytest.mark.parametrize("name", ["gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl"])
def test_fine_tuning_configs_share_the_tested_recipe(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    rule = config.optimizer
    assert (rule.name, rule.learning_rate, rule.beta_1) == ("adafactor", 5e-5, None)
    assert (rule.schedule, rule.warmup_fraction) == ("linear", 0.1)
    assert (config.training.num_epochs, config.data.sequence_length) == (1, 1024)


def test_programs_without_a_model_do_not_import_tensorflow():
    programs = ["data_pipeline.preprocess", "tfrecords.inspect", "trainer.report"]
    names = ", ".join([*(f"configs.{name}" for name in FILES), *programs])
    program = f"import sys, {names}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_the_schema_imports_neither_numpy_nor_tensorflow():
    program = (
        "import sys, configs.schema, configs.tpu, configs.validation; "
        "sys.exit(bool({'numpy', 'tensorflow'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_all_problems_are_reported_at_once():
    config = schema.Config()
    config.optimizer.name = "adam"
    config.data.sequence_length = 2048
    config.model.n_head = 7
    config.training.global_batch_size = 500
    config.training.microbatch_size = 64
    config.training.num_epochs = 0
    config.training.evaluation_interval = 15
    with pytest.raises(UserError) as error:
        validation.validate(config)
    message = str(error.value)
    assert len(message.splitlines()) == 6
    for expected in (
        "must be one of adafactor, adamw, muon, sgd. Received: 'adam'.",
        "2048 > 1024",
        "768 and 7",
        "Use 448 or 512",
        "`training.num_steps` must be positive",
        "15 and 10",
    ):
        assert expected in message


@pytest.mark.parametrize("field", sorted(validation.RANGES))
def test_a_value_below_its_range_is_refused(field):
    concern, _, name = field.rpartition(".")
    config = schema.Config()
    low, _ = validation.RANGES[field]
    setattr(operator.attrgetter(concern)(config), name, low - 1)
    with pytest.raises(UserError, match=f"`{field}` must be"):
        validation.validate(config)


@pytest.mark.parametrize(
    ("lora", "trainable", "message"),
    [
        ({"rank": 4, "alpha": 0.0}, "", "`model.lora.alpha` must be positive"),
        ({"rank": 4, "alpha": math.nan}, "", "`model.lora.alpha` must be positive"),
        ({"targets": "c_fc"}, "", "`model.lora.rank` must be positive if other"),
        ({"rank": 4}, "wte", "`training.trainable` must be empty with LoRA"),
    ],
)
def test_lora_that_makes_no_sense_is_refused(lora, trainable, message):
    config = schema.Config()
    config.model.lora = schema.LoraConfig(**lora)
    config.training.trainable = trainable
    with pytest.raises(UserError, match=message):
        validation.validate(config)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("data", "mode", "document"),
        ("data", "mode", "labelled"),
        ("data", "mode", "completion"),
        ("data", "end_token", ""),
        ("training", "task", "classification"),
        ("training", "task", "permutation_lm"),
        ("model", "architecture", "xlnet"),
    ],
)
def test_attention_by_document_needs_packed_documents_of_a_causal_model(
    section, field, value
):
    config = schema.Config()
    config.data.attention = "document"
    validation.validate(config)
    setattr(getattr(config, section), field, value)
    with pytest.raises(UserError, match=r"^`data.attention` must be causal") as error:
        validation.validate(config)
    assert len(str(error.value).splitlines()) == 1
    assert value in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("mode", "document"), ("mode", "labelled"), ("mode", "completion"), ("stride", 9)],
)
def test_records_begin_at_documents_only_where_they_are_packed(field, value):
    config = schema.Config()
    config.data.align = "document"
    for attention in ("causal", "document"):
        config.data.attention = attention
        validation.validate(config)
    config.data.attention = "causal"
    setattr(config.data, field, value)
    with pytest.raises(UserError, match=r"^`data.align` must be none") as error:
        validation.validate(config)
    assert len(str(error.value).splitlines()) == 1
    assert f"{field} {value}" in str(error.value)


def test_a_config_is_restored_from_its_dict():
    config = schema.Config()
    config.optimizer.beta_1 = 0.5
    config.model.lora.rank = 4
    values = dataclasses.asdict(config)
    assert schema.from_dict(values) == config
    assert schema.flatten(config)["model.lora.rank"] == 4
    # As older versions wrote it.
    del values["model"]["lora"], values["training"]["trainable"]
    assert schema.from_dict(values).model.lora == schema.LoraConfig()
    with pytest.raises(UserError, match="must be of this version"):
        schema.from_dict({**dataclasses.asdict(config), "model": {"depth": 3}})


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (
            "--config.optimizer.lerning_rate=1",
            "There is no config field `optimizer.lerning_rate`. "
            "Did you mean `optimizer.learning_rate`?",
        ),
        ("--config.optimizer.learning_rate=fast", "could not convert string"),
        ("--config.training.num_steps=1.5", "invalid literal for int"),
        ("--config.data.sequence_length=1", "must be at least 2. Received: 1"),
        ("--confg=x", "Unknown command line flag 'confg'"),
        ("stray", "Only flags are understood. Received: stray"),
    ],
)
def test_a_mistake_on_the_command_line_is_refused_with_one_message(
    argument, message, tmp_path
):
    result = run_program(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        f"--output_dir={tmp_path / 'out'}",
        argument,
    )
    assert_refused(result, message)
    assert not (tmp_path / "out").exists()


def test_a_mistake_after_an_empty_argument_is_refused(tmp_path):
    """Only arguments after --runner=beam are passed on to Beam."""
    result = run_program(
        "trainer.generate", f"--workdir={tmp_path}", "--prompt", "", "--max_tokns=5"
    )
    assert result.returncode == 2
    assert "Unknown command line flag 'max_tokns'" in result.stderr


@pytest.mark.parametrize("config", [[], ["--config=configs/none.py"]])
def test_a_missing_config_is_refused_with_one_message(config, tmp_path):
    result = run_program(
        "data_pipeline.preprocess", f"--output_dir={tmp_path / 'out'}", *config
    )
    assert result.returncode == 2
    assert "--config" in result.stderr or "configs/none.py" in result.stderr
    assert "Traceback" not in result.stderr
