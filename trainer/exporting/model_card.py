"""Writes the README.md of an exported model from the records of its run.

The card states what is known. License, language and datasets of the hub are the user's
to state.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

from configs import schema
from tfrecords import manifest as manifests
from tfrecords.storage import files
from trainer.checkpoints.pretrained import Pretrained
from trainer.exporting import huggingface
from trainer.models import lora, variables
from trainer.models.classifier import labels_of
from trainer.optimizers import factory, schedule
from trainer.run_dir import json_files, layout, results

_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# These fields do not change what a run computes.
_LEFT_OUT = ("hardware.", "tracking.")
# Figure of a result -> the hub's name of the metric.
_METRICS = {
    "token_perplexity": "perplexity",
    "word_perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
    # Of benchmarks.
    **dict.fromkeys(("perplexity", "last_token_perplexity"), "perplexity"),
    **dict.fromkeys(
        [f"{kind}accuracy" for kind in ("", "last_token_", "normalized_")]
        + [f"{kind}completion_accuracy" for kind in ("", "normalized_")],
        "accuracy",
    ),
    "macro_f1": "f1",
}
_CLASSIFIER_SNIPPET = """```python
from transformers import pipeline

classify = pipeline("text-classification", model="{model}")
print(classify(["The first text.", "Another one."], top_k=None, truncation=True))
```"""
_SNIPPET = """```python
from transformers import pipeline

generator = pipeline("text-generation", model="{model}")
text = generator("The", max_new_tokens={num_tokens}, do_sample=False)
print(text[0]["generated_text"])
```"""


def write(
    trained: Pretrained,
    workdir: str,
    *,
    repository: str = "",
    license: str = "",
    languages: Sequence[str] = (),
    datasets: Sequence[str] = (),
    is_adapter: bool = False,
) -> str:
    """Returns the card as Markdown with a YAML header.

    Args:
      trained: the model.
      workdir: of its run; empty: the model is not of a run.
      repository: of the hub, that gets the model; empty: none.
      license: of the model; empty: that of the initial checkpoint's card, else unknown.
      languages: that the model writes, as ISO codes.
      datasets: names on the hub.
      is_adapter: whether the folder holds LoRA's adapters alone, for PEFT.
    """
    labels = labels_of(trained.model.config)
    task = "text-classification" if labels else "text-generation"
    evaluations = results.load(workdir) if workdir else []
    path = files.join(workdir, layout.RUN)
    run = json_files.read(path) if workdir and files.exists(path) else {}
    # Of a folder, loading has recorded the absolute path.
    origin = run.get("model_config", {}).get("_name_or_path", "")
    source = origin if workdir else trained.name
    metrics = {
        metric
        for name, metric in _METRICS.items()
        for result in evaluations
        if result.get(name) is not None
    }
    header = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=task,
        tags=["xlnet" if trained.architecture.name == "xlnet" else "gpt2", "gpt2-tpu"],
        license=license or _license(source) or "unknown",
        language=list(languages) or None,
        datasets=list(datasets) or None,
        base_model=source if workdir and _HUB_NAME.fullmatch(source) else None,
        metrics=sorted(metrics) or None,
        model_name=PurePosixPath(trained.name).name,
        eval_results=list(_model_index(evaluations, trained.step, task)) or None,
    )
    sections = [
        f"# {header.model_name}",
        _description(trained, is_adapter),
        *([f"It classifies texts as {', '.join(labels)}."] if labels else []),
        *(_of_run(run, trained.step) if run else []),
        *(_of_data(workdir) if workdir else []),
        *_of_results(evaluations),
        "## Use",
        _use(repository, trained.model.config.n_positions, task),
    ]
    return f"---\n{header.to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"


def _description(trained: Pretrained, is_adapter: bool) -> str:
    shape = trained.model.config
    name = {"gpt2": "GPT-2", "xlnet": "XLNet"}.get(trained.architecture.name)
    if name is None:
        name = f"GPT-2, written from {trained.architecture.name},"
    if is_adapter:
        name = f"Adapters of LoRA, which PEFT reads, for a {name}"
    count = variables.num_parameters(lora.base(trained.model))
    return (
        f"{name} with {count:,} parameters: {shape.n_layer} "
        f"layers, {shape.n_head} heads, {shape.n_embd} channels, {shape.n_positions} "
        f"positions, a vocabulary of {shape.vocab_size:,}."
    )


def _license(checkpoint: str) -> str | None:
    """Returns the license that a checkpoint's own card states; None: not known."""
    if not checkpoint:
        return None
    try:
        path = cached_file(checkpoint, "README.md")
        license = ModelCard.load(path or "").data.get("license")
    except Exception:  # there is no card, no network, or no valid header
        return None
    # "other" is explained in fields and files of that card.
    return license if isinstance(license, str) and license != "other" else None


def _model_index(
    evaluations: list[dict[str, Any]], step: int | None, task: str
) -> Iterator[EvalResult]:
    """Yields the figures of the exported step, in the form of the hub's model index."""
    for result in evaluations:
        if result["step"] != step:
            continue
        protocol = dict(result["protocol"])
        dataset, split = protocol.pop("dataset"), protocol.pop("split")
        name_of_data = protocol.get("benchmark", f"gpt2-tpu dataset {dataset}")
        for name, metric in _METRICS.items():
            if result.get(name) is not None:
                yield EvalResult(
                    task_type=task,
                    dataset_type="text",
                    dataset_name=name_of_data,
                    dataset_split=split,
                    dataset_revision=dataset,
                    metric_type=metric,
                    metric_name=name.replace("_", " "),
                    metric_value=result[name],
                    metric_args=protocol,
                )


def _use(repository: str, num_positions: int, task: str) -> str:
    model = repository or "."
    is_classifier = task == "text-classification"
    snippet = (_CLASSIFIER_SNIPPET if is_classifier else _SNIPPET).format(
        model=model, num_tokens=huggingface.default_new_tokens(num_positions)
    )
    if repository:
        return snippet
    return f"In this folder; elsewhere, `model` is its path or name.\n\n{snippet}"


def _of_run(run: dict[str, Any], step: int | None) -> Iterator[str]:
    yield "## Training"
    tokens = (step or 0) * run["tokens_per_step"]
    yield (
        f"{step:,} of {run['num_steps']:,} steps of {run['tokens_per_step']:,} tokens, "
        f"{tokens:,} in all, on {run['hardware']}, by"
    )
    yield f"```\n{run['command']}\n```"
    config = schema.from_dict(run["config"])
    fields = schema.flatten(config)
    # What acted, where the config leaves the choice to the optimizer or the data.
    fields["optimizer.beta_1"] = factory.beta_1(config.optimizer)
    acting = schedule.Schedule(config.optimizer, run["num_steps"])
    fields["optimizer.warmup_steps"] = acting.warmup_steps
    fields["training.num_steps"] = run["num_steps"]
    rows = [
        f"| {name} | `{value}` |"
        for name, value in fields.items()
        if not (schema.is_of_dataset(name) or name.startswith(_LEFT_OUT))
    ]
    yield "\n".join(["| | |", "|---|---|", *rows])
    versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items())
    yield f"Made with {versions}."


def _of_data(workdir: str) -> Iterator[str]:
    if not files.exists(files.join(workdir, layout.MANIFEST)):
        return
    manifest = manifests.load(workdir)
    yield "## Data"
    yield (
        f"Dataset `{manifest.fingerprint[:16]}`, tokenizer "
        f"`{manifest.tokenizer_fingerprint[:16]}`, mode {manifest.mode}, records of "
        f"{manifest.sequence_length} tokens."
    )
    rows = [
        f"| {name} | {s.documents:,} | {s.words:,} | {s.bytes:,} | {s.tokens:,} |"
        for name, s in manifest.splits.items()
    ]
    head = "| split | documents | words | bytes | tokens |"
    yield "\n".join([head, "|---|---:|---:|---:|---:|", *rows])


def _of_results(all_results: list[dict[str, Any]]) -> Iterator[str]:
    if not all_results:
        return
    yield "## Results"
    yield "Only rows of the same protocol are comparable."
    figures = {"token_perplexity": 2, "word_perplexity": 2, "bits_per_byte": 4}
    if any("macro_f1" in result for result in all_results):
        figures = dict.fromkeys(("accuracy", "macro_f1", "bag_of_words_accuracy"), 4)
    rows, rows_of_benchmarks = [], []
    for result in all_results:
        stamp = dict(result["protocol"])
        if "benchmark" in stamp:
            values = ", ".join(
                f"{name.replace('_', ' ')} {result[name]:.4g}"
                for name in _METRICS
                if result.get(name) is not None
            )
            cells = [result["step"], stamp.pop("benchmark"), values, _join(stamp)]
            rows_of_benchmarks.append(f"| {' | '.join(map(str, cells))} |")
            continue
        shown = [stamp.pop(name) for name in ("split", "context_length", "stride")]
        rows.append(
            f"| {result['step']} | {' | '.join(map(str, shown))} | "
            f"{result['loss']:.4f} | "
            + "".join(
                f"{_number(result.get(name), n)} | " for name, n in figures.items()
            )
            + f"{_join(stamp)} |"
        )
    if rows:
        head = (
            "| step | split | context | stride | loss | "
            + "".join(f"{name.replace('_', ' ')} | " for name in figures)
            + "protocol |"
        )
        ruler = "|---:|---|" + "---:|" * (3 + len(figures)) + "---|"
        yield "\n".join([head, ruler, *rows])
    if rows_of_benchmarks:
        head = "| step | benchmark | figures | protocol |"
        yield "\n".join([head, "|---:|---|---|---|", *rows_of_benchmarks])


def _join(stamp: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in stamp.items())


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
