"""The notebooks, from their first cell to their last, in a real kernel.

Colab's on a TPU core that is not there, Kaggle's on a CPU.
"""

import base64
import json
import os
import pathlib
import subprocess
import sys
import sysconfig
import venv

import pytest

from tests.conftest import ROOT
from tests.fake_tpu import machine
from tests.fake_tpu.environment import copy_tree

NOTEBOOKS = ROOT / "notebooks"
TEXT = "The quick brown fox jumps over the lazy dog. It jumps {} times.\n\n"
TRAIN_ARGS = (
    "--config.training.num_steps=4",
    "--config.training.steps_per_execution=2",
    "--config.training.evaluation_interval=2",
    "--config.training.checkpoint_interval=2",
    "--config.training.global_batch_size=8",
    "--config.model.n_layer=1",
    "--config.model.n_embd=32",
)


def create_environment(folder: pathlib.Path) -> None:
    """Creates an environment with the packages of this one, which `make` takes.

    But for the one that only a notebook's own environment has.
    """
    venv.create(folder, symlinks=True)
    major, minor = sys.version_info[:2]
    packages = folder / "lib" / f"python{major}.{minor}" / "site-packages"
    for path in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith("matplotlib_inline"):
            (packages / path.name).symlink_to(path)
    for stamp in (".base", ".plan"):  # after setup.py was copied, so newer than it
        (folder / stamp).touch()


def create_tpu_environment(folder: pathlib.Path, tpu_environment) -> None:
    """Creates what `make` takes for an environment with a TPU of one core."""
    plugin = machine.build(tpu_environment.venv, tpu_environment.venv.parent)
    program = (
        f"import runpy, sys, tensorflow; tensorflow.load_library('{plugin}'); "
        "sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)"
    )
    log = folder / "log"
    log.mkdir(parents=True)
    (folder / "bin").mkdir()
    python = folder / "bin/python"
    python.write_text(f"""#!/bin/sh
export FAKE_TPU_CORES=1 FAKE_TPU_FOLDER={log} FAKE_TPU_JIT=XLA_CPU_JIT
case "$2" in
trainer.*) module=$2; shift 2
  exec {tpu_environment.venv}/bin/python -c "{program}" "$module" "$@" ;;
*) exec {tpu_environment.venv}/bin/python "$@" ;;
esac
""")
    python.chmod(0o755)
    (folder / ".base").touch()


def execute(name: str, folder: pathlib.Path, settings: dict[str, str], monkeypatch):
    """Runs a notebook in a kernel that starts in `folder`; raises where a cell does."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("jax", reason="the extra `plan` is not installed")
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    # Import the copy's modules, not those of the tree that is tested.
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel sets it
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name=notebook.metadata.kernelspec.name,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    finally:
        nbformat.write(notebook, folder / f"{name}-executed.ipynb")
    return [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def settings_of(folder: pathlib.Path, tpu_type: str) -> dict[str, str]:
    """Returns a notebook's settings for a small job."""
    (folder / "texts").mkdir()
    text = "".join(TEXT.format(number) for number in range(2000))
    (folder / "texts" / "text.txt").write_text(text)
    create_environment(folder / "venv")
    return {
        "TPU_TYPE": tpu_type,
        "PLAN_VENV": str(folder / "venv"),
        "INPUT": f"{folder}/texts/*.txt",
        "PROMPT": "The quick",
        "PREPROCESS_ARGS": "--config.data.document=paragraph "
        "--config.data.vocab_size=400",
        "TRAIN_ARGS": " ".join(TRAIN_ARGS),
    }


def check_outputs(outputs, tpu_type: str, num_replicas: int) -> None:
    printed = "".join(output.get("text", "") for output in outputs)
    assert "replicas compute" in printed  # doctor
    assert f"{tpu_type}, {num_replicas} replicas" in printed  # plan
    assert "tokens/s, at most" in printed
    assert "token perplexity" in printed  # evaluate
    assert "--- 1 of 1\nThe quick" in printed  # generate
    pictures = [output["data"] for output in outputs if "data" in output]
    image, page = pictures
    assert base64.b64decode(image["image/png"]).startswith(b"\x89PNG")
    assert '<iframe srcdoc="' in page["text/html"]
    assert "&lt;svg" in page["text/html"]  # the report's charts


@pytest.mark.slow
def test_the_notebook_for_colab_runs_from_top_to_bottom(
    tmp_path, monkeypatch, tpu_environment
):
    tree = tmp_path / "tree"
    copy_tree(tree)
    settings = settings_of(tmp_path, "v5e-1")
    create_tpu_environment(tmp_path / "tpu", tpu_environment)
    settings |= {
        "TPU": "local",
        "VENV": str(tmp_path / "tpu"),
        "SAVE_TO": str(tmp_path / "saved"),
    }
    outputs = execute("colab_tpu", tree / "notebooks", settings, monkeypatch)
    check_outputs(outputs, "v5e-1", 1)
    # Two programs of the training, and one each of doctor and of the evaluation.
    compiled = (tmp_path / "tpu/log/log.jsonl").read_text().count('"compile"')
    assert compiled == 4
    assert (tree / "runs/quickstart/plans/v5e-1.json").exists()
    assert (tmp_path / "saved/runs/quickstart/metrics.jsonl").exists()
    assert (tmp_path / "saved/exports/quickstart/model.safetensors").exists()


@pytest.fixture
def read_only():
    """Makes a folder read-only, for root as well."""
    mounted = []

    def protect(folder: pathlib.Path) -> None:
        command = ["mount", "--bind", "-o", "ro", folder, folder]
        if os.geteuid() != 0:
            subprocess.run(["chmod", "-R", "a-w", folder], check=True)
        elif subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine allows no read-only mount")
        else:
            mounted.append(folder)
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (folder / "new").touch()

    yield protect
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_the_notebook_for_kaggle_runs_with_read_only_inputs(
    tmp_path, monkeypatch, read_only
):
    working, inputs = tmp_path / "working", tmp_path / "input"
    working.mkdir()
    copy_tree(inputs / "gpt2-tpu")
    settings = settings_of(tmp_path, "v5e-8")
    (tmp_path / "texts").rename(inputs / "texts")
    settings |= {
        "TPU": "none",
        "VENV": str(tmp_path / "venv"),
        "INPUT": f"{inputs}/texts/*.txt",
        "COPY_OF_CODE": str(inputs / "gpt2-tpu"),
        "CODE": str(tmp_path / "code"),
        "DATA": str(tmp_path / "data"),
        "WORKDIR": str(working / "runs/quickstart"),
        "EXPORT": str(working / "exports/quickstart"),
        "REPORT": str(working / "report.html"),
    }
    read_only(inputs)
    outputs = execute("kaggle_tpu", working, settings, monkeypatch)
    check_outputs(outputs, "v5e-8", 8)
    assert (working / "exports/quickstart.zip").exists()


def test_the_notebooks_take_the_same_steps():
    """Only settings, titles and what keeps the results differ."""
    steps = {}
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
        texts = ["".join(cell["source"]) for cell in code]
        texts[0] = texts[0][texts[0].index("def run(") :]
        steps[path.stem] = [t for t in texts[:-1] if not t.startswith("if CONTINUE")]
    assert len(steps) == 2
    assert steps["colab_tpu"] == steps["kaggle_tpu"]
