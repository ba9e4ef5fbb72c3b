"""One page for a run, or for several: `python -m trainer.report --workdir=…`.

Reads what the runs' folders hold and writes one HTML file, which needs nothing else: no
script, no request. Needs no TensorFlow.
"""

import importlib.resources
import json
import math
import os
import statistics
from collections.abc import Sequence
from typing import Any

from absl import flags

from configs import cli
from configs.schema import ConfigError
from tfrecords import manifest as manifests
from tfrecords import storage
from trainer import journal, report_curves, report_tables
from trainer.markup import Figure, Html, join, note, short, table, tag
from trainer.report_curves import Run

FLAGS = flags.FLAGS

SECTIONS = (
    report_curves.curves,
    report_tables.evaluations,
    report_tables.samples,
    report_tables.memory,
    report_tables.data,
    report_tables.configuration,
    report_tables.events,
)


# -- reading


def read(workdir: str, name: str) -> Run:
    """Reads a run's folder.

    Raises:
      ConfigError: it has no `run.json`, or a file in it is damaged.
      DatasetError: its manifest is damaged.
    """
    path = storage.join(workdir, journal.RUN_NAME)
    if not storage.exists(path):
        raise ConfigError(
            f"`--workdir` must be the folder of a run. Received: {workdir}, which has "
            f"no {journal.RUN_NAME}. Correct the folder, or start the run again with "
            "`trainer.train` of this version, which writes it."
        )
    path_of_manifest = storage.join(workdir, manifests.FILE_NAME)
    manifest = None
    if storage.exists(path_of_manifest):
        manifest = manifests.from_json(_text(path_of_manifest), path_of_manifest)
    return Run(
        name=name,
        workdir=workdir,
        record=_parse(_text(path), path),
        metrics=_lines(workdir, journal.METRICS_NAME, needed="step"),
        samples=_lines(workdir, journal.SAMPLES_NAME, needed="text"),
        events=_lines(workdir, journal.EVENTS_NAME, needed="message"),
        evaluations=_folder(workdir, "evaluations"),
        plans=_folder(workdir, "plans"),
        manifest=manifest,
    )


def _text(path: str) -> str:
    return storage.read(path).decode(errors="replace")


def _lines(workdir: str, name: str, *, needed: str) -> list[dict[str, Any]]:
    """Reads JSON lines; a last one that is not yet whole is left out."""
    path = storage.join(workdir, name)
    if not storage.exists(path):
        return []
    whole = _text(path).split("\n")[:-1]
    return [
        _parse(line, f"{path}, line {number}", needed)
        for number, line in enumerate(whole, 1)
    ]


def _folder(workdir: str, name: str) -> list[dict[str, Any]]:
    """Reads the JSON files of a folder, by their names."""
    folder = storage.join(workdir, name)
    there = storage.sizes_and_versions(folder)
    paths = [storage.join(folder, n) for n in sorted(there) if n.endswith(".json")]
    return [_parse(_text(path), path) for path in paths]


def _parse(line: str, path: str, needed: str = "") -> dict[str, Any]:
    try:
        found = json.loads(line)
        if isinstance(found, dict) and (not needed or needed in found):
            return found
        reason = f"no object with {needed!r}" if needed else "no object"
    except ValueError as error:
        reason = str(error)
    raise ConfigError(f"{path} is damaged: {reason}. Mend or remove it.")


def names(workdirs: Sequence[str]) -> list[str]:
    """Returns the shortest ends of the paths that are different from each other."""
    paths = [folder.rstrip("/").split("/") for folder in workdirs]
    for count in range(1, max(map(len, paths)) + 1):
        found = ["/".join(path[-count:]) for path in paths]
        if len(set(found)) == len(found):
            return found
    raise ConfigError(
        f"`--workdirs` must name each run once. Received: {', '.join(workdirs)}."
    )


# -- the page


def page(runs: Sequence[Run]) -> str:
    """Returns the whole page."""
    title = ", ".join(run.name for run in runs)
    css = importlib.resources.files("trainer").joinpath("report.css").read_text("utf-8")
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # Whatever a text may hold, nothing is loaded or run.
        tag(
            "meta",
            http_equiv="Content-Security-Policy",
            content="default-src 'none'; style-src 'unsafe-inline'; img-src data:",
        ),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{title}: training report"),
        tag("style", Html(css)),
    ]
    heading = _one(runs[0]) if len(runs) == 1 else _several(runs)
    body = [
        tag("header", heading, [note(sentence) for sentence in _cautions(runs)]),
        tag("main", [make(runs) for make in SECTIONS]),
    ]
    document = tag("html", tag("head", head), tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _one(run: Run) -> Html:
    figures = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", more, class_="more"))
        for name, (value, more) in _figures(run).items()
    ]
    return join(
        [
            tag("h1", run.name),
            tag("p", _sentence(run), class_="lead"),
            tag("dl", figures, class_="figures"),
        ]
    )


def _several(runs: Sequence[Run]) -> Html:
    found = [_figures(run) for run in runs]
    columns = list(dict.fromkeys(name for figures in found for name in figures))
    rows = []
    for index, (run, figures) in enumerate(zip(runs, found, strict=True)):
        values = [figures.get(name, ("–", ""))[0] for name in columns]
        rows.append([report_curves.key_of(index, run.name), *map(Figure, values)])
    sentences = [(run.name, _sentence(run)) for run in runs]
    return join(
        [
            tag("h1", f"{len(runs)} runs"),
            table(["Run", *columns], rows),
            report_curves.gathered(sentences, len(runs)),
        ]
    )


def _sentence(run: Run) -> str:
    """What was trained, on what, and where."""
    shape, config = run.record.get("model_config", {}), run.config
    names = {"n_layer": "{} layers", "n_head": "{} heads", "n_embd": "width {}"}
    sizes = [
        words.format(shape[name]) for name, words in names.items() if name in shape
    ]
    start = config.get("model.initial_checkpoint") or "random weights"
    first, *others = (run.input or "its dataset").split(",")
    source = first.rstrip("/").rpartition("/")[2]
    source += f" and {len(others)} more" if others else ""
    if run.manifest and "train" in run.manifest.splits:
        source += f" ({run.manifest.split('train').tokens:,} tokens)"
    return (
        f"GPT-2 of {', '.join(sizes) or 'unknown size'}, from {start}, trained on "
        f"{source}, on {run.record.get('hardware') or 'unknown hardware'}."
    )


def _figures(run: Run) -> dict[str, tuple[str, str]]:
    """Returns the figures that sum a run up, each with what else is to say of it."""
    found: dict[str, tuple[str, str]] = {}
    validation = run.points("validation_loss")
    if validation:
        step, best = min(validation, key=lambda point: point[1])
        last, final = validation[-1]
        end, end_perplexity = f"at step {step:,}, the last", ""
        if step < last:
            end = f"at step {step:,}; final {final:.4f}"
            end_perplexity = f"final {short(math.exp(final))}"
        found["Best validation loss"] = f"{best:.4f}", end
        found["Best perplexity"] = short(math.exp(best)), end_perplexity
    training = run.points("loss")
    if training:
        step, loss = training[-1]
        found["Training loss"] = f"{loss:.4f}", f"of step {step:,}"
    if run.metrics:
        num_steps = run.record.get("num_steps")
        found["Steps"] = f"{run.last_step:,}", f"of {num_steps:,}" if num_steps else ""
    tokens = run.points("tokens")
    if tokens:
        size = run.record.get("tokens_per_step")
        found["Tokens seen"] = (
            f"{tokens[-1][1]:,.0f}",
            f"{size:,} a step" if size else "",
        )
    speeds = [speed for _, speed in run.points("tokens_per_second")]
    if speeds:
        found["Tokens per second"] = short(statistics.median(speeds)), "median"
    if run.record.get("parameter_count"):
        found["Parameters"] = f"{run.record['parameter_count']:,}", ""
    return found


def _cautions(runs: Sequence[Run]) -> list[str]:
    """Says where the losses of the runs are not of the same thing."""
    known = [run.manifest for run in runs if run.manifest]
    if len({manifest.tokenizer_fingerprint for manifest in known}) > 1:
        return ["The runs have different tokenizers: their losses do not compare."]
    if len({manifest.fingerprint for manifest in known}) > 1:
        return [
            "The runs' datasets differ: their losses compare only where the validation "
            "texts are the same."
        ]
    return []


# -- the program


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_list("workdirs", [], "folders of several runs, to compare")
    flags.DEFINE_string("output", "", "HTML file to write")


def main() -> None:
    if bool(FLAGS.workdir) == bool(FLAGS.workdirs):
        given = "both" if FLAGS.workdir else "neither"
        raise ConfigError(
            f"Give either `--workdir` or `--workdirs`. Received: {given}."
        )
    output = FLAGS.output
    if not output or output.endswith("/") or os.path.isdir(output):
        raise ConfigError(
            "`--output` must be the HTML file to write, such as report.html. Received: "
            f"{output or 'nothing'}."
        )
    workdirs = FLAGS.workdirs or [FLAGS.workdir]
    runs = [
        read(workdir, name)
        for workdir, name in zip(workdirs, names(workdirs), strict=True)
    ]
    # Half of a surrogate pair can stand in JSON, but not in UTF-8.
    storage.write(output, page(runs).encode(errors="replace"))
    if FLAGS.json:
        print(json.dumps({"output": output, "runs": [run.name for run in runs]}))
    else:
        print(f"report of {', '.join(run.name for run in runs)}: {output}")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
