"""Configs: every file is valid, every problem is told at once, with what to change."""

import dataclasses
import importlib
import subprocess
import sys

import pytest

from configs import schema, validation
from configs.errors import UserError
from tests.conftest import ROOT, assert_refused, run_program

FILES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "cli", "errors", "schema", "tpu", "validation")
)


@pytest.mark.parametrize("name", FILES)
def test_every_config_is_valid_and_explains_itself(name):
    module = importlib.import_module(f"configs.{name}")
    validation.validate(module.get_config())
    assert "Command" in module.__doc__
    assert "Hardware" in module.__doc__


@pytest.mark.parametrize("name", ["gpt2_small", "gpt2_medium", "gpt2_large", "gpt2_xl"])
def test_fine_tuning_has_the_known_good_values(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    rule = config.optimizer
    assert (rule.name, rule.learning_rate, rule.beta_1) == ("adafactor", 5e-5, None)
    assert (rule.schedule, rule.warmup_fraction) == ("linear", 0.1)
    assert (config.training.num_epochs, config.data.sequence_length) == (1, 1024)


def test_what_needs_no_tensorflow_does_not_load_it():
    programs = ["data_pipeline.preprocess", "tfrecords.inspect", "trainer.report"]
    names = ", ".join([*(f"configs.{name}" for name in FILES), *programs])
    program = f"import sys, {names}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_all_problems_are_told_at_once():
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
        "`optimizer.name` must be one of adafactor, adamw, sgd. Received: 'adam'.",
        "2048 > 1024",
        "768 and 7",
        "Use 448 or 512",
        "`training.num_steps` must be positive",
        "15 and 10",
    ):
        assert expected in message


@pytest.mark.parametrize("field", sorted(validation.RANGES))
def test_each_range_is_checked(field):
    concern, name = field.split(".")
    config = schema.Config()
    low, _ = validation.RANGES[field]
    setattr(getattr(config, concern), name, low - 1)
    with pytest.raises(UserError, match=f"`{field}` must be"):
        validation.validate(config)


def test_a_config_survives_json():
    config = schema.Config()
    config.optimizer.beta_1 = 0.5
    assert schema.from_dict(dataclasses.asdict(config)) == config
    with pytest.raises(UserError, match="not of this version"):
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
def test_a_mistake_on_the_command_line_is_one_message(argument, message, tmp_path):
    found = run_program(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        f"--output_dir={tmp_path / 'out'}",
        argument,
    )
    assert_refused(found, message)
    assert not (tmp_path / "out").exists()


def test_an_empty_argument_hides_no_mistake(tmp_path):
    """Only what follows --runner=beam goes to Beam."""
    found = run_program(
        "trainer.generate", f"--workdir={tmp_path}", "--prompt", "", "--max_tokns=5"
    )
    assert found.returncode == 2
    assert "Unknown command line flag 'max_tokns'" in found.stderr


@pytest.mark.parametrize("config", [[], ["--config=configs/none.py"]])
def test_a_missing_config_is_one_message(config, tmp_path):
    found = run_program(
        "data_pipeline.preprocess", f"--output_dir={tmp_path / 'out'}", *config
    )
    assert found.returncode == 2
    assert "--config" in found.stderr or "configs/none.py" in found.stderr
    assert "Traceback" not in found.stderr
