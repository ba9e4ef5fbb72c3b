"""The wheel: whether it has every file that the programs read."""

import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tests.test_tpu_install import copy_tree

PACKAGES = ("configs", "tfrecords", "data_pipeline", "trainer")
BUILD = """
import sys
from setuptools import build_meta
build_meta.build_wheel(sys.argv[1])
"""


def test_a_wheel_has_all_files_of_the_packages_and_no_others(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"
    copy_tree(tree)
    command = [sys.executable, "-c", BUILD, str(tmp_path)]
    subprocess.run(command, cwd=tree, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
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
