"""Ranks the runs of a study by their validation losses. Needs no TensorFlow."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from configs.schema import Config
from tfrecords import manifest as manifests
from tfrecords.manifest import Manifest
from tfrecords.storage import files
from trainer.reporting import runs as folders
from trainer.reporting.runs import Run
from trainer.reporting.sections import compare
from trainer.run_dir import layout, summary


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How a run is scored.

    Attributes:
      data_dir: dataset whose validation split is scored.
      context_lengths: tokens of its windows, one result for each.
    """

    data_dir: str
    context_lengths: tuple[int, ...]


def scorings(data_dirs: Sequence[str]) -> list[Scoring]:
    """Returns how to score the runs of a study, such that they compare where they can.

    Records of several lengths, of one text and tokenizer: all runs are scored on one
    dataset, with each of the lengths up to that of their own records. Other runs are
    scored on their own dataset.

    Args:
      data_dirs: dataset of each run.

    Raises:
      DataError: a dataset is missing, or has no validation split.
    """
    data = [manifests.load(data_dir) for data_dir in data_dirs]
    lengths = [manifest.sequence_length for manifest in data]
    if len({_text(manifest) for manifest in data}) > 1:
        return [Scoring(*own) for own in zip(data_dirs, zip(lengths), strict=True)]
    return [
        Scoring(data_dirs[0], tuple(sorted({n for n in lengths if n <= own})))
        for own in lengths
    ]


def _text(manifest: Manifest) -> tuple[Any, ...]:
    """Returns what datasets with the same text in the same tokens have in common."""
    split = manifest.split("validation")
    if manifest.mode != "packed":
        return (manifest.fingerprint,)
    counts = (split.documents, split.words, split.bytes, split.tokens)
    return (manifest.tokenizer_fingerprint, *counts)


def best_step(run: Run) -> int:
    """Returns the step > 0 with the lowest validation loss; 0: there is none."""
    points = [(loss, step) for step, loss in run.points("validation_loss") if step]
    return int(min(points, default=(0, 0))[1])


def results(run: Run, scoring: Scoring) -> list[dict[str, Any]]:
    """Returns the stored results of the best step, by context length.

    Those that are missing are left out.
    """
    wanted = {
        "dataset": manifests.load(scoring.data_dir).fingerprint[:16],
        "split": "validation",
        "precision": run.config["training.precision"],
    }
    by_length = {
        protocol["stride"]: result
        for result in run.evaluations
        if result["step"] == best_step(run)
        and wanted.items() <= (protocol := result.get("protocol", {})).items()
        and protocol["stride"] == protocol["context_length"]
    }
    return [by_length[n] for n in scoring.context_lengths if n in by_length]


def is_done(workdir: str, config: Config, scoring: Scoring) -> bool:
    """Returns whether a run of this config was trained to its end, and scored."""
    if not files.exists(files.join(workdir, layout.RUN)):
        return False
    run = folders.read(workdir, workdir)
    if run.record["config"] != dataclasses.asdict(config):
        return False
    steps = [step for step, _ in run.points("validation_loss") if step]
    patience, best = config.training.early_stopping_patience, best_step(run)
    stopped_early = 0 < patience <= sum(step > best for step in steps)
    is_trained = stopped_early or run.record["num_steps"] in steps
    return is_trained and len(results(run, scoring)) == len(scoring.context_lengths)


def rank(
    studied: Sequence[Run], how: Sequence[Scoring]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Ranks the runs that were scored by the same protocol.

    Args:
      studied: the runs.
      how: they were scored.

    Returns:
      For each protocol: "protocol", "best" (the name of a run; None: there is only one)
      and "runs", a row of figures for each, by loss. And the names of the fields in
      which the protocols differ.
    """
    tables: dict[str, dict[str, Any]] = {}
    for run, scoring in zip(studied, how, strict=True):
        for result in results(run, scoring):
            protocol = result["protocol"]
            table = tables.setdefault(str(protocol), {"protocol": protocol, "runs": []})
            table["runs"].append(_row(run, result))
    for table in tables.values():
        table["runs"].sort(key=lambda row: row["validation_loss"])
        table["best"] = table["runs"][0]["run"] if len(table["runs"]) > 1 else None
    rankings = list(tables.values())
    return rankings, compare([ranking["protocol"] for ranking in rankings])[1]


def _row(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    perplexities = [v for name, v in result.items() if name.endswith("perplexity")]
    figures = summary.table(run.metrics)
    return {
        "run": run.name,
        "validation_loss": result["loss"],
        "perplexity": perplexities[0] if perplexities else None,
        "step": result["step"],
        "tokens": int(figures["tokens"]),
        "tokens_per_second": round(figures["tokens_per_second"]),
        "parameters": run.record["parameter_count"],
    }
