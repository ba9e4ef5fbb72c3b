"""How the runs of a study are scored, when they are done, and how they rank."""

import dataclasses
import json

import numpy as np
import pytest

from configs import schema
from configs.errors import DataError
from tests.conftest import write_dataset
from tests.trainer.reporting.folders import evaluation, metrics, write_run
from tfrecords import manifest
from trainer.reporting import runs, study
from trainer.reporting.study import Scoring
from trainer.run_dir import results

LINES = metrics(2600, 20)


def dataset(folder, *, length, seed=0, **options):
    rng = np.random.default_rng(seed)
    train, validation = (rng.integers(1, 97, size) for size in (300, 100 + seed))
    return write_dataset(
        folder,
        train_tokens=train,
        validation_tokens=validation,
        sequence_length=length,
        **options,
    )


def test_records_of_several_lengths_are_scored_on_one_dataset(tmp_path):
    folders = [str(tmp_path / name) for name in "abcd"]
    for folder, length in zip(folders, (32, 8, 16, 32), strict=True):
        dataset(tmp_path / folder, length=length)
    first = folders[0]
    assert study.scorings(folders[:3]) == [
        Scoring(first, (8, 16, 32)),
        Scoring(first, (8,)),
        Scoring(first, (8, 16)),
    ]
    assert study.scorings([folders[3]] * 2) == [Scoring(folders[3], (32,))] * 2


@pytest.mark.parametrize("change", [{"seed": 1}, {"vocabulary_size": 101}])
def test_another_text_or_tokenizer_is_scored_on_its_own(tmp_path, change):
    folders = [str(tmp_path / name) for name in "ab"]
    dataset(tmp_path / "a", length=8)
    dataset(tmp_path / "b", length=16, **change)
    own = [Scoring(folders[0], (8,)), Scoring(folders[1], (16,))]
    assert study.scorings(folders) == own


def test_a_missing_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match="has no manifest"):
        study.scorings([str(tmp_path)])


@pytest.fixture
def scoring(tmp_path):
    dataset(tmp_path / "data", length=8)
    return Scoring(str(tmp_path / "data"), (4, 8))


def studied(tmp_path, scoring, name, losses, **protocol):
    """A run's folder with results of these losses, by context length."""
    folder = write_run(tmp_path / name, lines=LINES)
    for path in (folder / "evaluations").iterdir():
        path.unlink()
    for length, loss in losses.items():
        stamp = {
            "dataset": manifest.load(scoring.data_dir).fingerprint[:16],
            "split": "validation",
            "precision": "bfloat16",
            "context_length": length,
            "stride": length,
            **protocol,
        }
        result = evaluation(loss, **stamp)
        results.save(str(folder), result | {"step": 2340, "published": []})
    return runs.read(str(folder), name)


def test_runs_of_one_protocol_are_ranked(tmp_path, scoring):
    losses = {"a": {4: 5.0, 8: 4.0}, "b": {4: 4.5}, "c": {4: 4.75, 8: 3.5}}
    found = [studied(tmp_path, scoring, *item) for item in losses.items()]
    short = dataclasses.replace(scoring, context_lengths=(4,))
    tables, differing = study.rank(found, [scoring, short, scoring])
    assert differing == ["context_length", "stride"]
    ranked = {
        table["protocol"]["context_length"]: [row["run"] for row in table["runs"]]
        for table in tables
    }
    assert ranked == {4: ["b", "c", "a"], 8: ["c", "a"]}
    assert [table["best"] for table in tables] == ["b", "c"]
    row = tables[0]["runs"][0]
    assert (row["validation_loss"], row["step"]) == (4.5, 2340)
    assert row["perplexity"] == pytest.approx(np.exp(4.5))
    assert (row["tokens"], row["tokens_per_second"]) == (2600 * 1024, 2050)


@pytest.mark.parametrize(
    ("protocol", "counts"),
    [
        ({}, True),
        ({"precision": "float32"}, False),
        ({"stride": 2}, False),
        ({"split": "test"}, False),
        ({"dataset": "other"}, False),
        ({"context_length": 6, "stride": 6}, False),
    ],
)
def test_only_results_of_the_studys_protocol_count(tmp_path, scoring, protocol, counts):
    run = studied(tmp_path, scoring, "run", {4: 4.0}, **protocol)
    assert bool(study.results(run, scoring)) == counts


def test_a_run_is_done_when_all_of_it_is_there(tmp_path, scoring):
    def is_done(name, losses=((4, 5.0), (8, 4.0)), *, seed=0, patience=0, steps=2600):
        run = studied(tmp_path, scoring, name, dict(losses))
        run.record["num_steps"] = steps
        run.record["config"]["training"]["early_stopping_patience"] = patience
        (tmp_path / name / "run.json").write_text(json.dumps(run.record))
        config = schema.from_dict(run.record["config"])
        config.training.seed = seed
        return study.is_done(run.workdir, config, scoring)

    assert is_done("done")
    assert not is_done("half", [(4, 5.0)])
    assert not is_done("other", seed=1)
    assert not is_done("unfinished", steps=5200)
    # Of these lines, the last evaluation is not the best.
    assert is_done("early", steps=5200, patience=1)
    assert not is_done("patient", steps=5200, patience=2)
    assert not study.is_done(str(tmp_path / "none"), schema.Config(), scoring)
