"""Worker processes and Apache Beam write the same bytes."""

import os
import re

import pytest

from configs.schema import Config, DataConfig
from data_pipeline import pipeline, runners
from data_pipeline.job import plan_job
from tests.conftest import ROOT, run_program, shared
from tests.data_pipeline.runs import (
    SETTINGS,
    hashes,
    run,
)

BEAM = ["--direct_num_workers=2", "--direct_running_mode=multi_processing"]


MODES = {
    "packed": {},
    "overlapping": {"stride": 16},
    "document": {"mode": "document", "start_token": "<|start|>"},
    "labelled": {"mode": "labelled", "padding_side": "left", "deduplicate": True},
}


@pytest.mark.parametrize(
    ("mode", "numbers_of_workers"),
    [
        ("packed", (1, 7)),
        ("labelled", (3,)),
        pytest.param("overlapping", (2,), marks=pytest.mark.slow),
        pytest.param("document", (2,), marks=pytest.mark.slow),
    ],
)
def test_workers_and_beam_write_the_same_bytes(
    labelled_corpus, tmp_path, mode, numbers_of_workers
):
    """As in one process, whatever the number of workers."""
    small = {"min_chunk_bytes": 40_000}
    for workers in (0, *numbers_of_workers):
        run(labelled_corpus, tmp_path / str(workers), workers, **small, **MODES[mode])
    expected = hashes(tmp_path / "0")
    assert {"manifest.json", "train-00002-of-00003.tfrecord"} <= expected.keys()
    assert not [name for name in expected if "unfinished" in name or "partial" in name]
    for workers in numbers_of_workers:
        assert hashes(tmp_path / str(workers)) == expected
    config = Config(
        data=DataConfig(input=str(labelled_corpus), **SETTINGS, **MODES[mode])
    )
    pytest.importorskip("apache_beam")
    with runners.beam([]) as runner:
        pipeline.preprocess(plan_job(config, **small), str(tmp_path / "beam"), runner)
    assert hashes(tmp_path / "beam") == expected


def test_beam_from_the_command_line_writes_the_same_bytes(labelled_corpus, tmp_path):
    pytest.importorskip("apache_beam")
    arguments = [
        "--config=configs/quickstart.py",
        f"--input={labelled_corpus}",
        "--config.data.vocab_size=500",
    ]
    for name, flags in (
        ("local", []),
        ("beam", ["--runner=beam", "--runner=DirectRunner", *BEAM]),
    ):
        result = run_program(
            "data_pipeline.preprocess",
            *arguments,
            f"--output_dir={tmp_path / name}",
            *flags,
        )
        assert result.returncode == 0, result.stderr
    assert hashes(tmp_path / "beam") == hashes(tmp_path / "local")


def test_beam_knows_the_options_of_the_documentation():
    pytest.importorskip("apache_beam")
    page = (ROOT / "docs" / "data.md").read_text()
    (command,) = re.findall(r"--runner=beam (--runner=Dataflow.*?)```", page, re.S)
    with runners.beam(command.replace("\\\n", " ").split()):
        pass


def test_an_unknown_option_of_beam_is_one_message(labelled_corpus, tmp_path):
    pytest.importorskip("apache_beam")
    arguments = ["--config=configs/quickstart.py", f"--input={labelled_corpus}"]
    result = run_program(
        "data_pipeline.preprocess",
        *arguments,
        f"--output_dir={tmp_path}",
        "--runner=beam",
        "--direct_num_workerz=2",
    )
    assert result.returncode == 2, result.stderr
    assert (
        "must be known to Apache Beam. Received: --direct_num_workerz" in result.stderr
    )
    without = run_program(
        "data_pipeline.preprocess",
        *arguments,
        f"--output_dir={tmp_path}",
        "--direct_num_workers=2",
    )
    assert without.returncode == 2


def test_bad_input_on_beam_is_one_message(tmp_path):
    pytest.importorskip("apache_beam")
    lines = ['{"text": "fine"}'] * 2000
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{"]))
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    result = run_program(
        "data_pipeline.preprocess",
        "--config=configs/quickstart.py",
        f"--input={tmp_path / 'a.jsonl'}",
        f"--output_dir={tmp_path / 'out'}",
        f"--config.data.tokenizer={vocabulary}",
        "--runner=beam",
    )
    assert result.returncode == 2, result.stderr
    assert "a.jsonl:2001: each line must be a JSON object" in result.stderr
