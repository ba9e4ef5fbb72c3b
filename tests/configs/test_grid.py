"""The grid of a study: its cells, their names, and all problems in one message."""

import pytest

from configs import grid, quickstart, schema
from configs.errors import UserError
from configs.validation import validate
from tests.conftest import ROOT, assert_refused, run_program

PATH = str(ROOT / "configs" / "quickstart.py")


def cells(**fields):
    typed = {name.replace("__", "."): values for name, values in fields.items()}
    return grid.cells(PATH, {"training.num_steps": 7}, typed, validate)


def test_each_combination_is_a_cell():
    made = cells(model__n_layer=["1", "3"], optimizer__learning_rate=["1e-3", "2"])
    assert [cell.name for cell in made] == [
        "n_layer=1+learning_rate=0.001",
        "n_layer=1+learning_rate=2.0",
        "n_layer=3+learning_rate=0.001",
        "n_layer=3+learning_rate=2.0",
    ]
    for cell in made:
        assert cell.config.model.n_layer == cell.values["model.n_layer"]
        rate = cell.config.optimizer.learning_rate
        assert rate == cell.values["optimizer.learning_rate"]
    expected = schema.flatten(quickstart.get_config())
    expected |= {"training.num_steps": 7, **made[3].values}
    assert schema.flatten(made[3].config) == expected
    fields = ("training.num_steps=7", "model.n_layer=3", "optimizer.learning_rate=2")
    assert made[3].flags == [f"--config={PATH}", *(f"--config.{f}" for f in fields)]


def test_names_are_folders():
    made = cells(
        data__seed=["1"], training__seed=["2"], model__initial_checkpoint=["a/b c"]
    )
    assert made[0].name == "data.seed=1+training.seed=2+model.initial_checkpoint=a_b_c"
    assert made[0].config.model.initial_checkpoint == "a/b c"
    assert cells(model__lora__rank=["4"])[0].config.model.lora.rank == 4
    with pytest.raises(UserError, match="Two cells are initial_checkpoint=a_b"):
        cells(model__initial_checkpoint=["a/b", "a_b"])


def test_all_problems_are_one_message():
    with pytest.raises(UserError) as caught:
        cells(model__n_layer=["1", "1.5"], training__seed=["1", "01"])
    wrong, twice = sorted(str(caught.value).splitlines(), reverse=True)
    assert "--config.model.n_layer=1.5: invalid literal for int()" in wrong
    assert wrong.endswith(" (n_layer=1.5+seed=1, n_layer=1.5+seed=01)")
    assert twice == "Two cells are n_layer=1+seed=1: leave one out."


def test_a_problem_stands_once_with_its_cells():
    with pytest.raises(UserError) as caught:
        cells(model__n_head=["2", "3"], training__dropout=["0.95"])
    everywhere, one = str(caught.value).splitlines()
    assert everywhere == "`training.dropout` must be from 0 to 0.9. Received: 0.95."
    assert one.startswith("`model.n_embd` must be a multiple")
    assert one.endswith(" (n_head=3+dropout=0.95)")
    with pytest.raises(UserError, match="home folder"):
        cells(model__initial_checkpoint=["~nobody-of-this-name/gpt2"])


@pytest.mark.parametrize(
    ("fields", "received"),
    [({}, "none"), ({"model__n_layer": []}, "`--grid.model.n_layer` has none")],
)
def test_a_grid_has_fields_and_values(fields, received):
    with pytest.raises(UserError, match=f"Received: {received}"):
        cells(**fields)


def test_a_list_is_commas_quotes_and_repeated_flags(tmp_path):
    """Values with commas are quoted; a dataset of its own for each length."""
    process = run_program(
        "trainer.study",
        "--config=quickstart",
        '--grid.model.lora.targets="c_attn,c_proj",c_fc',
        "--grid.data.sequence_length=32",
        "--grid.data.sequence_length=64",
        "--config.model.lora.rank=4",
        f"--data_dir={tmp_path}/{{data.sequence_length}}",
        f"--workdir={tmp_path}/study",
    )
    needed = (f"It needs --config.data.sequence_length={n}." for n in (32, 64))
    assert_refused(process, *needed, f"{tmp_path}/64, which has no manifest.json")
    assert not (tmp_path / "study").exists()


def test_all_unknown_fields_are_one_message():
    process = run_program(
        "trainer.study", "--config=quickstart", "--grid.model.layers=1", "--config.x=2"
    )
    assert_refused(process, "no config field `model.layers`", "no config field `x`")


def test_a_field_of_the_data_needs_a_dataset_for_each_value(small_run, tmp_path):
    flags = ["--config=quickstart", f"--workdir={tmp_path}/study"]
    length = "--grid.data.sequence_length=64,128"
    data = f"--data_dir={small_run}/data"
    process = run_program("trainer.study", *flags, length, data)
    assert_refused(process, "must hold {data.sequence_length}", "Received: ")
    # The trainer's own field: one dataset serves all its values, and is looked for.
    attention = "--grid.data.attention=causal,document"
    absent = f"--data_dir={tmp_path}/absent"
    process = run_program("trainer.study", *flags, attention, absent)
    assert_refused(process, f"{tmp_path}/absent, which has no manifest.json")
    for name in (64, 128):
        (tmp_path / f"data-{name}").symlink_to(small_run / "data")
    data = f"--data_dir={tmp_path}/data-{{data.sequence_length}}"
    process = run_program("trainer.study", *flags, length, data)
    assert_refused(process, "--config.data.sequence_length=64. Received: 128.")
    assert process.stderr.count("must be preprocessed") == 1
