"""Paths arrive as typed: `~` is the home folder, a list may be repeated."""

import pathlib
import re

import pytest
from absl import flags

from configs import cli, paths
from tests import programs
from tests.conftest import ROOT, assert_refused


def parse(*arguments, monkeypatch, home="/home/me"):
    monkeypatch.setenv("HOME", home)
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    cli.define_path("folder", "", values)
    values(["program", *arguments])
    return values.folder


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("~/x", "/home/me/x"),
        ("~", "/home/me"),
        ("~root/x", f"{pathlib.Path('~root').expanduser()}/x"),
        ("./~/x", "./~/x"),
        ("a~b", "a~b"),
        ("gs://bucket/~/x", "gs://bucket/~/x"),
        ("", ""),
    ],
)
def test_a_tilde_is_the_home_folder(argument, expected, monkeypatch):
    assert parse(f"--folder={argument}", monkeypatch=monkeypatch) == expected


def test_the_home_of_nobody_is_refused(monkeypatch):
    with pytest.raises(flags.Error, match=r"`~` must be a home folder.*~nobody-here/x"):
        parse("--folder=~nobody-here/x", monkeypatch=monkeypatch)


def test_a_path_that_exists_is_not_split(tmp_path, monkeypatch):
    (tmp_path / "a,b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert paths.split_paths(["a,b", "c,d", "e"]) == ["a,b", "c", "d", "e"]


def test_no_program_defines_a_path_without_its_tilde():
    name = re.compile(r'DEFINE_\w+\(\s*"(\w*dirs?|\w*file|output|checkpoint|\w*input)"')
    for path in (ROOT / "configs/cli.py", *ROOT.glob("[dt]*/*.py")):
        assert not name.findall(path.read_text()), path


def test_a_program_writes_below_the_home_folder(tmp_path):
    """Flags, fields of the config, the config itself, repeated flags and commas."""
    home, texts = tmp_path / "home", ["one,two.txt", "three.txt", "four.txt"]
    home.mkdir()
    for name in texts:
        paragraphs = [f"{name} and {number} words" for number in range(200)]
        (home / name).write_text("\n\n".join(paragraphs))
    (home / "mine.py").write_text((ROOT / "configs/quickstart.py").read_text())
    process = programs.run(
        "data_pipeline.preprocess",
        "--config=~/mine.py",
        "--config.data.vocab_size=300",
        "--config.data.document=paragraph",
        "--config.data.sequence_length=32",
        "--input=~/one,two.txt",
        "--input=~/three.txt,~/four.txt",
        "--output_dir=~/out/data",
        "--num_workers=1",
        "--json",
        HOME=str(home),
    )
    assert process.returncode == 0, process.stderr
    assert (home / "out/data/manifest.json").exists()
    assert not (ROOT / "~").exists()
    assert all(name in process.stdout for name in texts)


def test_a_field_with_the_home_of_nobody_is_one_message():
    process = programs.run(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        "--config.data.tokenizer=~nobody-here/x",
        "--output_dir=/nowhere",
    )
    assert_refused(process, "`~` must be a home folder", "~nobody-here/x")
