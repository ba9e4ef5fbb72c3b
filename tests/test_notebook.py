"""The Colab notebook, from its first cell to its last, on this machine's CPU."""

import pathlib
import sys

import pytest

from tests.test_tpu_install import copy_tree

TEXT = "The quick brown fox jumps over the lazy dog. It jumps {} times.\n\n"


def create_stand_in_environment(folder: pathlib.Path) -> None:
    """Creates an environment that `make` takes for installed: the one of this test."""
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for stamp in (".base", ".plan"):  # after setup.py was copied, so newer than it
        (folder / stamp).touch()


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("jax", reason="the extra `plan` is not installed")
    tree, text = tmp_path / "tree", tmp_path / "text.txt"
    copy_tree(tree)
    create_stand_in_environment(tmp_path / "venv")
    text.write_text("".join(TEXT.format(number) for number in range(2000)))
    settings = {
        "TPU": "none",
        "TPU_TYPE": "v5e-1",
        "VENV": str(tmp_path / "venv"),
        "INPUT": str(text),
        "PROMPT": "The quick",
        "PREPROCESS_ARGS": "--config.data.document=paragraph "
        "--config.data.vocab_size=400",
        "TRAIN_ARGS": "--config.training.num_steps=4 "
        "--config.training.steps_per_execution=2 "
        "--config.training.evaluation_interval=2 "
        "--config.training.checkpoint_interval=2 "
        "--config.model.n_layer=1 --config.model.n_embd=32",
        "SAVE_TO": str(tmp_path / "saved"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    # Import the copy's modules, not those of the tree that is tested.
    monkeypatch.delenv("PYTHONPATH", raising=False)

    notebook = nbformat.read(tree / "notebooks" / "colab_tpu.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name=notebook.metadata.kernelspec.name,
        resources={"metadata": {"path": str(tree / "notebooks")}},
    )
    client.execute()  # raises where a cell does

    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "replicas compute" in printed  # doctor
    assert "v5e-1, 1 replicas" in printed  # plan
    assert "tokens/s, at most" in printed
    assert "--- 1 of 1\nThe quick" in printed  # generate
    assert (tree / "runs/quickstart/plans/v5e-1.json").exists()
    assert (tmp_path / "saved" / "metrics.jsonl").exists()
