"""Writes the README.md of an exported model from the records of its run."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from configs import schema
from tfrecords import manifest as manifests
from tfrecords.storage import files
from trainer.checkpoints.pretrained import Pretrained
from trainer.run_dir import json_files, layout, results

_HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
- gpt2-tpu
{base}---
"""
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# These fields do not change what a run computes.
_LEFT_OUT = ("data.", "hardware.", "tracking.")


def write(trained: Pretrained, workdir: str) -> str:
    """Returns the card as Markdown with a YAML header.

    Args:
      trained: the model.
      workdir: of its run; empty: the model is not of a run.
    """
    shape = trained.model.config
    sections = [
        f"# {PurePosixPath(trained.name).name}",
        f"GPT-2 with {trained.model.num_parameters():,} parameters: {shape.n_layer} "
        f"layers, {shape.n_head} heads, {shape.n_embd} channels, {shape.n_positions} "
        f"positions, a vocabulary of {shape.vocab_size:,}.",
    ]
    base = ""
    if workdir:
        path = files.join(workdir, layout.RUN)
        if files.exists(path):
            run = json_files.read(path)
            sections += _of_run(run, trained.step)
            # Of a folder, loading has recorded the absolute path.
            source = run.get("model_config", {}).get("_name_or_path", "")
            if _HUB_NAME.fullmatch(source):
                base = f"base_model: {source}\n"
        path = files.join(workdir, layout.MANIFEST)
        if files.exists(path):
            sections += _of_data(manifests.load(workdir))
        sections += _of_results(results.load(workdir))
    sections += [
        "## Use",
        "```python\nfrom transformers import pipeline\n\n"
        'generator = pipeline("text-generation", model="THIS MODEL")\n'
        'print(generator("Once upon a time")[0]["generated_text"])\n```',
    ]
    return _HEADER.format(base=base) + "\n" + "\n\n".join(sections) + "\n"


def _of_run(run: dict[str, Any], step: int | None) -> Iterator[str]:
    yield "## Training"
    tokens = (step or 0) * run["tokens_per_step"]
    yield (
        f"{step:,} of {run['num_steps']:,} steps of {run['tokens_per_step']:,} tokens, "
        f"{tokens:,} in all, on {run['hardware']}, by"
    )
    yield f"```\n{run['command']}\n```"
    fields = schema.flatten(schema.from_dict(run["config"]))
    rows = [
        f"| {name} | `{value}` |"
        for name, value in fields.items()
        if not name.startswith(_LEFT_OUT)
    ]
    yield "\n".join(["| | |", "|---|---|", *rows])
    versions = ", ".join(f"{name} {v}" for name, v in run["versions"].items())
    yield f"Made with {versions}."


def _of_data(manifest: manifests.Manifest) -> Iterator[str]:
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
    head = (
        "| step | split | context | stride | loss | token perplexity | "
        "word perplexity | bits per byte | protocol |"
    )
    rows = []
    for result in all_results:
        stamp = dict(result["protocol"])
        shown = [stamp.pop(name) for name in ("split", "context_length", "stride")]
        rest = ", ".join(f"{name} {value}" for name, value in stamp.items())
        rows.append(
            f"| {result['step']} | {' | '.join(map(str, shown))} | "
            f"{result['loss']:.4f} | {_number(result.get('token_perplexity'))} | "
            f"{_number(result.get('word_perplexity'))} | "
            f"{_number(result.get('bits_per_byte'), 4)} | "
            f"{rest} |"
        )
    yield "\n".join([head, "|---:|---|" + "---:|" * 6 + "---|", *rows])


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
