"""Folders of runs for the tests of reports, and their pages."""

import dataclasses
import json
import math
import pathlib
import random

from configs import schema
from tfrecords import manifest
from trainer.reporting import runs
from trainer.reporting.page import page

PAYLOAD = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&</title></style><!--"
)
NAME = "<script>alert(2)"  # of a run
TEXT = f"The castle <b>was</b> & is\n\n    if x < 3:\n生命的意义在于创造。{PAYLOAD}"
GIB = 2**30


def write_lines(path, lines, torn=""):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def a_manifest(**changes):
    shards = (manifest.Shard("train-00000-of-00001.tfrecord", 20_786, 1, "0" * 64),)
    counts = {"documents": 617, "words": 2_051_910, "bytes": 10_797_148}
    notes = {"skipped": {"empty": 3}, "repaired": {"a byte order mark": 1}}
    train = manifest.Split(
        tokens=2_660_626, stride=128, shards=shards, **counts, **notes
    )
    values = {
        "format_version": 2,
        "sequence_length": 128,
        "token_dtype": "uint16",
        "vocabulary_size": 8192,
        "end_of_text_id": 0,
        "pad_id": 0,
        "padding_side": "right",
        "tokenizer_fingerprint": "ab" * 32,
        "tokenizer_engine": "",
        "added_tokens": (),
        "mode": "packed",
        "config": {},
        "splits": {"train": train, "validation": manifest.Split(tokens=278_498)},
    }
    return manifest.Manifest(**(values | changes))


def metrics(num_steps, every, rate=1e-3, seed=0):
    noise, lines = random.Random(seed), []
    for step in range(0, num_steps + 1, every):
        loss = 4.5 + 4.5 * math.exp(-6 * step / num_steps)
        if step:
            values = {"loss": loss + noise.gauss(0, 0.1), "learning_rate": rate}
            values |= {
                "gradient_norm": math.exp(noise.gauss(0, 1.2)),
                "update_norm": 0.1,
            }
            values |= {"tokens": step * 1024, "tokens_per_second": 2050.0, "mfu": 0.41}
            values |= {"skipped_updates": 2.0, "hbm_bytes_in_use": 6 * GIB}
            lines.append({"step": step, **values})
        if step % (num_steps // 10) == 0:
            # The lowest is not the last one.
            score = loss + 0.3 * (step == num_steps)
            scores = {
                "validation_loss": score,
                "validation_perplexity": math.exp(score),
            }
            lines.append({"step": step, **scores, "memorization": 0})
    return lines


def evaluation(loss=4.7279, **protocol):
    return {
        "model": "step 2600",
        "step": 2600,
        "split": "validation",
        "tokens": 278_498,
        "tokens_scored": 276_322,
        "words": 213_886,
        "bytes": 1_121_681,
        "loss": loss,
        "token_perplexity": math.exp(loss),
        "word_perplexity": 471.4,
        "bits_per_byte": 1.6935,
        "protocol": {
            "dataset": "3f2a9c0d1b7e4a55",
            "tokenizer": "abababababababab",
            "context_length": 128,
            "stride": 128,
            "precision": "float32",
            **protocol,
        },
    }


def plan(tpu_type, hbm, sizes):
    names = ("argument_bytes", "temporary_bytes", "generated_code_bytes")
    memory = dict.fromkeys((*names, "peak_bytes"))
    if sizes:
        memory = dict(zip(names, sizes, strict=True)) | {"peak_bytes": sum(sizes)}
    refusal = f"RESOURCE_EXHAUSTED: Used 10.63G of 7.48G hbm. {PAYLOAD}"
    return {
        "tpu_type": tpu_type,
        "hbm_available_bytes": hbm,
        "fits": bool(sizes),
        "message": "" if sizes else refusal,
        "num_replicas": 8,
        **memory,
        "microbatch_size": 16,
        "accumulation_steps": 4,
        "remat": "block",
    }


def tuned(made):
    """Returns the plan with what estimates and `--tune` add."""
    candidates = [
        {
            "microbatch_size": size,
            "accumulation_steps": 64 // size,
            "remat": remat,
            "peak_bytes": gib * GIB,
            "tokens_per_second_estimate": [speed, 1.2 * speed],
        }
        for size, remat, gib, speed in ((16, "none", 9, 5e5), (32, "block", 4, 4e5))
    ]
    shares = {"attention": 0.25, "other products": 0.75}
    return made | {"step_shares": shares, "candidates": candidates}


def write_run(
    folder: pathlib.Path,
    *,
    rate: float = 1e-3,
    tokens_per_step: int = 1024,
    data: manifest.Manifest | None = None,
    lines: list | None = None,
) -> pathlib.Path:
    """Writes every file that a run's folder can hold."""
    for name in ("evaluations", "plans"):
        (folder / name).mkdir(parents=True)
    config = schema.Config(
        data=schema.DataConfig(input=f"corpus/{PAYLOAD}", sequence_length=128),
        optimizer=schema.OptimizerConfig(learning_rate=rate),
    )
    record = {
        "command": f"python -m trainer.train --x='{PAYLOAD}'",
        "num_steps": 2600,
        "hardware": "CPU x 2",
        "parameter_count": 5_336_576,
        "tokens_per_step": tokens_per_step,
        "config": dataclasses.asdict(config),
        "model_config": {"n_layer": 4, "n_head": 4, "n_embd": 256, "more": PAYLOAD},
        "versions": {"gpt2-tpu": "0.1.0", "tensorflow": "2.20.0"},
    }
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "manifest.json").write_text(manifest.to_json(data or a_manifest()))
    lines = lines or metrics(2600, 10, rate)
    write_lines(folder / "metrics.jsonl", lines, torn='{"step": 26')
    samples = [(400, "", TEXT), (2600, "The castle", TEXT), (2600, "", f"\n{TEXT}" * 9)]
    samples = [{"step": s, "prompt": p, "text": t} for s, p, t in samples]
    write_lines(folder / "samples.jsonl", samples)
    events = [
        (None, "info", "started"),
        (400, "warning", PAYLOAD),
        (9, "error", "gone"),
    ]
    time = {"time": "2026-11-22T09:00:00Z"}
    events = [time | {"step": s, "level": v, "message": m} for s, v, m in events]
    write_lines(folder / "events.jsonl", events)
    scored = [evaluation(), evaluation(4.6123, stride=32, detokenizer=PAYLOAD)]
    for index, result in enumerate(scored):
        (folder / "evaluations" / f"{index}.json").write_text(json.dumps(result))
    plans = [plan("v2-8", int(7.48 * GIB), None), plan("v3-8", 15 * GIB, [GIB, GIB, 9])]
    plans[1] = tuned(plans[1])
    for made in plans:
        path = folder / "plans" / f"{made['tpu_type']}.json"
        path.write_text(json.dumps(made))
    return folder


def make_page(*folders: pathlib.Path) -> pathlib.Path:
    """Writes the page of some runs beside the first folder."""
    names = runs.names(list(map(str, folders)))
    read = [runs.read(str(f), name) for f, name in zip(folders, names, strict=True)]
    output = folders[0].parent / "page.html"
    output.write_text(page(read))
    return output
