"""The grid of a study: its cells, their names, and all problems in one message."""

import pytest

from configs import grid, quickstart
from configs.errors import UserError
from configs.validation import validate
from tests.conftest import ROOT, assert_refused, run_program

PATH = str(ROOT / "configs" / "quickstart.py")


def cells(check=validate, **fields):
    typed = {name.replace("__", "."): values for name, values in fields.items()}
    return grid.cells(quickstart.get_config(), PATH, typed, check)


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
    assert made[0].config.data == quickstart.get_config().data


def test_names_are_folders():
    made = cells(
        data__seed=["1"], training__seed=["2"], model__initial_checkpoint=["a/b c"]
    )
    assert made[0].name == "data.seed=1+training.seed=2+model.initial_checkpoint=a_b_c"
    assert made[0].config.model.initial_checkpoint == "a/b c"
    assert cells(model__lora__rank=["4"])[0].config.model.lora.rank == 4
    with pytest.raises(UserError, match="the same folder name"):
        cells(model__initial_checkpoint=["a/b", "a_b"])


def test_all_problems_of_the_values_are_one_message():
    with pytest.raises(UserError) as caught:
        cells(
            model__n_layer=["1", "x", "1.5"],
            optimizer__learning_rate=["0.1", "1e-1"],
            data__deduplicate=["perhaps"],
            training__seed=[],
        )
    assert str(caught.value).splitlines() == [
        "`--grid.model.n_layer` must be whole numbers. Received: x, 1.5.",
        "`--grid.optimizer.learning_rate` must have each value once. Received: "
        "0.1,1e-1.",
        "`--grid.data.deduplicate` must be true or false. Received: perhaps.",
        "`--grid.training.seed` must have values, separated by commas.",
    ]


def test_a_problem_is_told_once_with_its_cells():
    with pytest.raises(UserError) as caught:
        cells(model__n_head=["2", "3"], training__dropout=["0.95"])
    everywhere, one = str(caught.value).splitlines()
    assert everywhere.startswith("`training.dropout` must be from 0 to 0.9")
    assert one.startswith("n_head=3+dropout=0.95: `model.n_embd` must be a multiple")
    with pytest.raises(UserError, match="home folder"):
        cells(model__initial_checkpoint=["~nobody-of-this-name/gpt2"])


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
    assert_refused(process, f"DATA={tmp_path}/64 ")
    *_, first, second, _ = process.stderr.split("\n")
    for length, line in ((32, first), (64, second)):
        fields = "--config.model.lora.rank=4 --config.data.sequence_length="
        assert f"make preprocess CONFIG={PATH} DATA={tmp_path}/{length} " in line
        assert line.endswith(f"'ARGS={fields}{length}'")
    assert not (tmp_path / "study").exists()


def test_all_unknown_fields_are_one_message():
    process = run_program(
        "trainer.study", "--config=quickstart", "--grid.model.layers=1", "--config.x=2"
    )
    assert_refused(process, "no config field `model.layers`", "no config field `x`")
    process = run_program("trainer.study", "--config=quickstart")
    assert_refused(process, "`--grid.FIELD=A,B,…` must name")
