"""The wheel: whether it has every file that the programs read."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tests.fake_tpu.environment import copy_tree

PACKAGES = ("configs", "tfrecords", "data_pipeline", "trainer")
BUILD = """
import sys
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    copy_tree(folder / "tree")
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=folder / "tree", check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_a_wheel_has_all_files_of_the_packages_and_no_others(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == expected
    assert {f"{package}/py.typed" for package in PACKAGES} <= packed


@pytest.mark.parametrize("config", ["only_here", "configs/only_here.py"])
def test_an_installed_program_finds_the_installed_configs(wheel, tmp_path, config):
    """Outside the checkout, by the console script."""
    site = wheel.parent / "site"
    if not site.exists():
        install = ["-m", "pip", "install", "-q", "--no-deps", f"--target={site}"]
        subprocess.run([sys.executable, *install, str(wheel)], check=True)
        quickstart = (site / "configs" / "quickstart.py").read_text()
        (site / "configs" / "only_here.py").write_text(quickstart)
    command = [sys.executable, site / "bin" / "gpt2-tpu-train", f"--config={config}"]
    process = subprocess.run(
        [*command, f"--data_dir={tmp_path}/none", f"--workdir={tmp_path}/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    # The config is read; then the dataset is missing.
    assert process.returncode == 2, process.stderr
    (error,) = [n for n in process.stderr.splitlines() if n.startswith("error:")]
    assert f"{tmp_path}/none" in error
