"""Selects and sums up what the sections of a report show; `templates/` shows it."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

from configs import schema
from tfrecords.manifest import Manifest
from trainer.reporting import charts
from trainer.reporting.numbers import label, short
from trainer.reporting.runs import Run
from trainer.run_dir import goodput

Rows = list[list[Any]]
_MAX_SAMPLED_STEPS = 12
_MAX_SAMPLE_CHARACTERS = 2000
_MAX_EVENTS = 200
MEMORY_PARTS = {
    "argument_bytes": "weights, optimizer and batch",
    "temporary_bytes": "temporaries",
    "generated_code_bytes": "the program",
}


def overview(runs: Sequence[Run]) -> tuple[list[str], Rows]:
    """Returns the names of the runs' figures, and a row of figures for each run."""
    tables = [figures(run) for run in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))
    rows = [
        [run.name, *(table.get(name, ("–",))[0] for name in names)]
        for run, table in zip(runs, tables, strict=True)
    ]
    return names, rows


def figures(run: Run) -> dict[str, tuple[str, str]]:
    """Returns the figures that sum up a run: name -> (value, remark)."""
    return {name: (value, remark) for name, value, remark in _figures(run)}


def _figures(run: Run) -> Iterable[tuple[str, str, str]]:
    if validation := run.points("validation_loss"):
        step, best = min(validation, key=lambda point: point[1])
        last_step, last = validation[-1]
        remark = ", the last" if step == last_step else f"; final {last:.4f}"
        yield "Best validation loss", f"{best:.4f}", f"at step {step:,}{remark}"
        if run.points("validation_perplexity"):
            remark = "" if step == last_step else f"final {_perplexity(last)}"
            yield "Best perplexity", _perplexity(best), remark
    if training := run.points("loss"):
        yield "Training loss", f"{training[-1][1]:.4f}", f"of step {training[-1][0]:,}"
    if run.metrics:
        step, planned = run.metrics[-1]["step"], run.record.get("num_steps")
        yield "Steps", f"{step:,}", f"of {planned:,}" if planned else ""
    if tokens := run.points("tokens"):
        size = run.record.get("tokens_per_step")
        remark = f"{size:,} a step" if size else ""
        yield "Tokens seen", f"{tokens[-1][1]:,.0f}", remark
    if speeds := [speed for _, speed in run.points("tokens_per_second")]:
        yield "Tokens per second", short(statistics.median(speeds)), "median"
    if measured := goodput.measure(run.metrics, run.events):
        remark = f"of {measured.total_seconds:,.0f} s in steps that stay"
        yield "Goodput", f"{measured.share:.1%}", remark
    if count := run.record.get("parameter_count"):
        trained = run.record.get("trained_parameter_count", count)
        yield "Parameters", f"{count:,}", f"{trained:,} trained" * (trained < count)


def _perplexity(loss: float) -> str:
    return short(math.exp(min(loss, 700.0)))  # exp of more overflows


def caution(runs: Sequence[Run]) -> str:
    """Returns why the runs' losses do not compare; nothing where they do."""
    manifests = [run.manifest for run in runs if run.manifest]
    if len({manifest.tokenizer_fingerprint for manifest in manifests}) > 1:
        return "The runs have different tokenizers: their losses do not compare."
    if len({manifest.fingerprint for manifest in manifests}) > 1:
        return "The runs' datasets differ: only losses on the same text compare."
    return ""


def evaluations(runs: Sequence[Run]) -> dict[str, Any]:
    """Returns the results of all runs, in groups of the same protocol.

    Returns:
      "head" and "bodies" of a table, one body a protocol; "differing" names of fields
      of the protocols; "common" fields. Empty: there are no results.
    """
    results = [(run.name, result) for run in runs for result in run.evaluations]
    if not results:
        return {}
    protocols = {str(_protocol(result)): _protocol(result) for _, result in results}
    common, differing = compare(list(protocols.values()))
    # A task's figures are fractions, its counts whole numbers.
    scores = {k: None for _, r in results for k, v in r.items() if isinstance(v, float)}
    bodies: dict[str, Rows] = {key: [] for key in protocols}
    for name, result in results:
        protocol = _protocol(result)
        row = [name, result.get("step"), *(_score(result.get(key)) for key in scores)]
        row += [result.get("tokens_scored"), *map(protocol.get, differing)]
        bodies[str(protocol)].append(row)
    columns = ("run", "step", *scores, "tokens_scored", *differing)
    return {
        "head": [label(column) for column in columns],
        "bodies": list(bodies.values()),
        "differing": differing,
        "common": common,
    }


def confusions(runs: Sequence[Run]) -> list[tuple[str, Markup]]:
    """Returns a title and a picture for each classifier's confusion matrix."""
    return [
        (
            f"{run.name}, step {result['step']:,}, {_protocol(result)['split']}",
            charts.matrix(result["labels"], result["confusion"]),
        )
        for run in runs
        for result in run.evaluations
        if "confusion" in result
    ]


def _protocol(result: dict[str, Any]) -> dict[str, Any]:
    return result.get("protocol") or {"split": result.get("split")}


def _score(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.4f}" if abs(value) < 10 else f"{value:,.2f}"


def compare(tables: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Returns the fields that all tables share, and the names of the others."""
    names = dict.fromkeys(name for table in tables for name in table)
    first = tables[0]
    differing = [n for n in names if any(t.get(n) != first.get(n) for t in tables)]
    return {n: first.get(n) for n in names if n not in differing}, differing


def published(runs: Sequence[Run]) -> list[str]:
    """Returns a sentence for each published result that is beside one of a run."""
    results = (result for run in runs for result in run.evaluations)
    sentences = []
    for study in (study for result in results for study in result.get("published", [])):
        figures = ", ".join(f"{label(k)} {v:.4g}" for k, v in study["figures"].items())
        differences = "; ".join(study["differences"]) or "the same protocol"
        sentences.append(f"{study['study']}: {figures} ({differences}).")
    return list(dict.fromkeys(sentences))


def samples(run: Run) -> list[tuple[int, list[tuple[str, str]]]]:
    """Returns (step, [(prompt, the rest of the text)]), the newest first.

    Of too many steps, these are every n-th.
    """
    steps: dict[int, list[tuple[str, str]]] = {}
    for sample in run.samples:
        text, prompt = str(sample["text"]), str(sample.get("prompt") or "")
        if len(text) > _MAX_SAMPLE_CHARACTERS:
            text = f"{text[:_MAX_SAMPLE_CHARACTERS]} […]"
        if not text.startswith(prompt):
            prompt = ""
        parts = (prompt, text.removeprefix(prompt))
        steps.setdefault(sample.get("step") or 0, []).append(parts)
    every = math.ceil(len(steps) / _MAX_SAMPLED_STEPS) or 1
    return sorted(steps.items(), reverse=True)[::every]


def datasets(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs that read each dataset: fingerprint -> runs."""
    readers: dict[str, list[Run]] = {}
    for run in runs:
        if run.manifest:
            readers.setdefault(run.manifest.fingerprint, []).append(run)
    return readers


def counts(manifest: Manifest) -> Rows:
    """Returns the rows of a table of a dataset's splits."""
    splits = manifest.splits.values()
    names = ("documents", "words", "bytes", "tokens", "num_records")
    rows: Rows = [
        [label(name.removeprefix("num_")), *(getattr(split, name) for split in splits)]
        for name in (*names, "truncated_documents", "truncated_tokens")
    ]
    ratios = [split.bytes / max(split.tokens, 1) for split in splits]
    rows.append(["Bytes per token", *(f"{ratio:.2f}" for ratio in ratios)])
    rows.append(["Shards", *(len(split.shards) for split in splits)])
    for kind in ("skipped", "repaired", "kept", "labels"):
        reasons = dict.fromkeys(r for split in splits for r in getattr(split, kind))
        rows += [
            [
                f"{label(kind)}: {reason}",
                *(getattr(s, kind).get(reason, 0) for s in splits),
            ]
            for reason in reasons
        ]
    return rows


def differences(runs: Sequence[Run]) -> Rows:
    """Returns the fields in which the runs differ: (name, value of each run)."""
    tables: list[dict[str, Any]] = [
        {
            **run.config,
            "hardware": run.record.get("hardware"),
            "parameters": run.record.get("parameter_count"),
            "trained parameters": run.record.get(
                "trained_parameter_count", run.record.get("parameter_count")
            ),
            "dataset": run.manifest.fingerprint[:16] if run.manifest else None,
            **{f"version of {k}": v for k, v in run.record.get("versions", {}).items()},
        }
        for run in runs
    ]
    return [[key, *(table.get(key) for table in tables)] for key in compare(tables)[1]]


def configuration(run: Run) -> tuple[Rows, dict[str, Any]]:
    """Returns (field, value, default) of the changed fields; and the other fields."""
    defaults = schema.flatten(schema.Config())
    rows = [[name, v, defaults.get(name, "–")] for name, v in run.config.items()]
    changed = [row for row in rows if row[1] != row[2]]
    return changed, {name: value for name, value, default in rows if value == default}


def events(run: Run) -> list[dict[str, Any]]:
    """Returns the latest events; of too many, first of all warnings and errors."""
    indices = range(len(run.events))
    alarms = {i for i in indices if run.events[i].get("level", "info") != "info"}
    kept = sorted(indices, key=lambda index: (index in alarms, index))[-_MAX_EVENTS:]
    return [run.events[index] for index in sorted(kept)]
