"""The sections of a run report that are tables and texts; see `curves`.

Each takes all runs of the page, and returns None where there is nothing to show.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from configs import schema
from tfrecords.manifest import Manifest
from trainer.reporting.curves import each
from trainer.reporting.markup import (
    Figure,
    Html,
    details,
    fact_list,
    join,
    note,
    section,
    table,
    tag,
    words,
)
from trainer.reporting.runs import Run

_MOST_SAMPLED_STEPS = 12
_MOST_CHARACTERS = 2000  # of a sample
_MOST_EVENTS = 200
_SCORES = {
    "loss": "Loss",
    "token_perplexity": "Perplexity per token",
    "word_perplexity": "Perplexity per word",
    "bits_per_byte": "Bits per byte",
    "tokens_scored": "Tokens scored",
}


def evaluations(runs: Sequence[Run]) -> Html:
    """One table of all runs; rows of one protocol stand together."""
    scored = [(run, found) for run in runs for found in run.evaluations]
    if not scored:
        command = f"python -m trainer.evaluate --workdir={runs[0].workdir} --data_dir=…"
        return section("Evaluation", note(f"Not evaluated yet: `{command}` does."))
    protocols: list[dict[str, Any]] = []
    for _, found in scored:
        if _protocol(found) not in protocols:
            protocols.append(_protocol(found))
    fields = list(dict.fromkeys(field for protocol in protocols for field in protocol))
    differing = [
        f for f in fields if any(p.get(f) != protocols[0].get(f) for p in protocols)
    ]
    several = len(runs) > 1
    head = [*(["Run"] if several else []), "Model", *_SCORES.values()]
    head += [words(field).capitalize() for field in differing]
    bodies = []
    for protocol in protocols:
        rows = []
        for run, found in scored:
            if _protocol(found) == protocol:
                cells = [
                    "–" if found.get("step") is None else f"step {found['step']:,}",
                    *(_score(found, name) for name in _SCORES),
                ]
                cells += [protocol.get(field) for field in differing]
                rows.append([*([run.name] if several else []), *cells])
        bodies.append(rows)
    notes = []
    if differing:
        which = ", ".join(map(words, differing))
        notes.append(
            tag(
                "p",
                tag("strong", f"{len(protocols)} protocols, which differ in {which}."),
                " Only figures of the same protocol, which stand together, compare.",
            )
        )
    studies = [
        f"{published['study']}: {_figures_of(published)}. "
        + ("; ".join(published["differences"]) or "The same protocol")
        for _, found in scored
        for published in found.get("published", [])
    ]
    common = {
        words(f).capitalize(): protocols[0][f] for f in fields if f not in differing
    }
    return section(
        "Evaluation",
        notes,
        table(head, *bodies),
        tag("h3", "Protocol" if not differing else "What the protocols have in common"),
        fact_list(common),
        tag("h3", "Published") if studies else None,
        [note(f"{study}.") for study in dict.fromkeys(studies)],
    )


def _figures_of(published: dict[str, Any]) -> str:
    pairs = published["figures"].items()
    return ", ".join(f"{words(name)} {value:.2f}" for name, value in pairs)


def _protocol(found: dict[str, Any]) -> dict[str, Any]:
    return found.get("protocol") or {"split": found.get("split")}


def _score(found: dict[str, Any], name: str) -> object:
    value, decimals = found.get(name), 2 if name.endswith("perplexity") else 4
    return Figure(f"{value:,.{decimals}f}") if isinstance(value, float) else value


def samples(runs: Sequence[Run]) -> Html | None:
    parts = each(runs, _samples_of)
    return section("Samples", parts) if parts else None


def _samples_of(run: Run) -> Html | None:
    steps: dict[int, list[Html]] = {}
    for sample in run.samples:
        steps.setdefault(sample.get("step") or 0, []).append(_sample(sample))
    if not steps:
        return None
    ordered = sorted(steps, reverse=True)
    shown, count = ordered, _MOST_SAMPLED_STEPS
    notes = []
    if count < len(ordered):
        shown = [ordered[i * (len(ordered) - 1) // (count - 1)] for i in range(count)]
        notes.append(note(f"Of {len(ordered):,} steps with samples, {count} are here."))
    return join(
        notes
        + [
            details(f"Step {step:,}", steps[step], is_open=step == ordered[0])
            for step in shown
        ]
    )


def _sample(sample: dict[str, Any]) -> Html:
    prompt, whole = str(sample.get("prompt") or ""), str(sample["text"])
    if len(whole) > _MOST_CHARACTERS:
        whole = f"{whole[:_MOST_CHARACTERS]} […]"
    parts: list[object] = [whole]
    if prompt and whole.startswith(prompt):
        parts = [tag("b", prompt), whole.removeprefix(prompt)]
    return tag("div", parts, class_="sample", dir="auto")


_PARTS = {
    "argument_bytes": "weights, optimizer and batch",
    "temporary_bytes": "temporaries",
    "generated_code_bytes": "the program",
}
_PLANNED = ("num_replicas", "microbatch_size", "accumulation_steps", "remat")


def memory(runs: Sequence[Run]) -> Html:
    parts = each(runs, _memory_of)
    if not parts:
        command = f"python -m trainer.plan --config=… --workdir={runs[0].workdir}"
        parts = [note(f"No plan for a TPU yet: `{command}` says what fits.")]
    return section("Memory of a TPU replica", parts)


def _memory_of(run: Run) -> Html | None:
    if not run.plans:
        return None
    plans = sorted(run.plans, key=lambda plan: plan["hbm_available_bytes"])
    sizes = (*_PARTS, "peak_bytes", "hbm_available_bytes")
    head = ["TPU", "Replicas", "Microbatch", "Accumulation", "Recomputed"]
    head += ["Weights, optimizer", "Temporaries", "Program", "Peak", "HBM", "Fits"]
    rows = []
    for plan in plans:
        cells = [*map(plan.get, _PLANNED), *(_gib(plan.get(name)) for name in sizes)]
        fits = "yes" if plan["fits"] else tag("b", "no")
        rows.append([plan["tpu_type"], *cells, fits])
    names = enumerate(_PARTS.values())
    legend = [tag("span", name, class_=f"key p{index}") for index, name in names]
    caption = tag(
        "figcaption",
        tag("b", "Share of the HBM"),
        tag("span", legend, class_="legend"),
    )
    return join(
        [
            tag("figure", caption, [_bar(plan) for plan in plans], class_="bars"),
            table(head, rows),
            note("Of one replica, in GiB, by the compiler of the TPU."),
        ]
    )


def _bar(plan: dict[str, Any]) -> Html:
    """A plan's parts, stacked in a box as long as all of the HBM."""
    limit, peak = plan["hbm_available_bytes"], plan.get("peak_bytes") or 0
    said = f"{_gib(peak)} of {_gib(limit)} GiB ({peak / limit:.0%})"
    parts = [
        tag("i", class_=f"p{index}", style=f"width:{size / limit:.2%}")
        for index, size in enumerate(map(plan.get, _PARTS))
        if size
    ]
    if not plan["fits"]:
        said = "✕ does not fit"
    return tag(
        "div",
        tag("span", plan["tpu_type"]),
        tag("span", parts, class_="room" if parts else "room unknown"),
        tag("span", said, class_="sum"),
        tag("p", plan["message"], class_="message") if plan.get("message") else None,
        class_="bar",
    )


def _gib(num_bytes: float | None) -> Figure:
    return Figure("–" if num_bytes is None else f"{num_bytes / 2**30:,.2f}")


_COUNTED = ("documents", "words", "bytes", "tokens", "num_records")
_TRUNCATED = ("truncated_documents", "truncated_tokens")
_NOTICED = ("skipped", "repaired", "kept", "labels")


def data(runs: Sequence[Run]) -> Html | None:
    """What the manifests say; once where several runs read the same dataset."""
    readers: dict[str, list[Run]] = {}
    for run in runs:
        if run.manifest:
            readers.setdefault(run.manifest.fingerprint, []).append(run)
    parts = []
    for group in readers.values():
        if len(runs) > 1:
            parts.append(tag("h3", ", ".join(run.name for run in group)))
        if group[0].manifest:
            parts.append(_dataset(group[0], group[0].manifest))
    return section("Data", parts) if parts else None


def _dataset(run: Run, manifest: Manifest) -> Html:
    splits = manifest.splits.values()
    rows: list[list[object]] = []
    for name in (*_COUNTED, *_TRUNCATED):
        label = words(name).removeprefix("num ").capitalize()
        rows.append([label, *(getattr(split, name) for split in splits)])
    ratios = [split.bytes / max(split.tokens, 1) for split in splits]
    rows.append(["Bytes per token", *(Figure(f"{ratio:.2f}") for ratio in ratios)])
    rows.append(["Shards", *(len(split.shards) for split in splits)])
    for kind in _NOTICED:
        counts = [getattr(split, kind) for split in splits]
        reasons = dict.fromkeys(reason for count in counts for reason in count)
        if not reasons and kind != "labels":
            rows.append([kind.capitalize(), *(0 for _ in splits)])
        for reason in reasons:
            found = [count.get(reason, 0) for count in counts]
            label = tag("span", f"{kind.capitalize()}: {reason}", class_="wrap")
            rows.append([label, *found])
    facts = {
        "Input": run.input,
        "Mode": manifest.mode,
        "Sequence length": f"{manifest.sequence_length:,} tokens",
        "Tokenizer": run.config.get("data.tokenizer"),
        "Vocabulary": manifest.vocabulary_size,
        "Added tokens": ", ".join(manifest.added_tokens),
        "Tokenizer's fingerprint": tag("code", manifest.tokenizer_fingerprint[:16]),
        "Dataset's fingerprint": tag("code", manifest.fingerprint[:16]),
    }
    return join([fact_list(facts), table(["", *manifest.splits], rows)])


def configuration(runs: Sequence[Run]) -> Html | None:
    """What differs between the runs, then each run's own."""
    parts = []
    if len(runs) > 1:
        found = [_described(run) for run in runs]
        fields = dict.fromkeys(field for values in found for field in values)
        rows = [
            [tag("code", f), *(_value(values.get(f)) for values in found)]
            for f in fields
            if any(values.get(f) != found[0].get(f) for values in found)
        ]
        head = ["What differs", *(run.name for run in runs)]
        parts = [table(head, rows) if rows else note("The runs do not differ.")]
    parts += each(runs, _configuration_of, folded=True)
    return section("Configuration", parts) if parts else None


def _described(run: Run) -> dict[str, object]:
    versions = run.record.get("versions", {})
    return {
        **run.config,
        "hardware": run.record.get("hardware"),
        "parameters": run.record.get("parameter_count"),
        "dataset": run.manifest.fingerprint[:16] if run.manifest else None,
        **{f"version of {name}": version for name, version in versions.items()},
    }


def _configuration_of(run: Run) -> Html:
    defaults = schema.flatten(schema.Config())
    changed = {
        name: value
        for name, value in run.config.items()
        if name not in defaults or value != defaults[name]
    }
    rest = {name: v for name, v in run.config.items() if name not in changed}
    rows = [
        [tag("code", name), tag("b", _value(v)), _value(defaults.get(name, "–"))]
        for name, v in changed.items()
    ]
    others = {
        f"{len(rest)} fields as they are by default": rest,
        "The model, as transformers describes it": run.record.get("model_config", {}),
        "Versions": run.record.get("versions", {}),
    }
    found = [
        details(title, _by_concern(["Field", "Value"], _plain(values)))
        for title, values in others.items()
        if values
    ]
    # A flag a line; so it can be pasted, too.
    command = str(run.record.get("command") or "").replace(" --", " \\\n  --")
    if rows:
        found.insert(0, _by_concern(["Changed field", "Value", "Default"], rows))
    if command:
        found.insert(0, tag("pre", tag("code", command)))
    return join(found)


def _by_concern(head: Sequence[object], rows: Sequence[Sequence[Html]]) -> Html:
    """A table in which the fields of one concern of the config stand together."""
    concerns = itertools.groupby(rows, lambda row: row[0].rpartition(".")[0])
    return table(head, *(list(group) for _, group in concerns))


def _plain(values: Mapping[str, object]) -> list[list[Html]]:
    return [[tag("code", name), _value(value)] for name, value in values.items()]


def _value(value: object) -> Html:
    """As it is written in a config: a number has no commas."""
    return tag("code", "empty" if value == "" else str(value), class_="value")


_SIGNS = {"warning": "▲ ", "error": "✕ ", "critical": "✕ "}


def events(runs: Sequence[Run]) -> Html | None:
    parts = each(runs, _events_of, folded=True)
    return section("Events", parts) if parts else None


def _events_of(run: Run) -> Html | None:
    """The latest; of too many, rather those that went wrong."""
    indices = range(len(run.events))
    loud = {index for index in indices if run.events[index].get("level") in _SIGNS}
    kept = sorted(indices, key=lambda index: (index in loud, index))[-_MOST_EVENTS:]
    rows = []
    for event in (run.events[index] for index in sorted(kept)):
        level = str(event.get("level", "info"))
        time = str(event.get("time", "–")).replace("T", " ").removesuffix("Z")
        css = f"long {level if level in _SIGNS else ''}".strip()
        sign = tag("span", f"{_SIGNS.get(level, '')}{level}", class_=css)
        message = tag("p", event["message"], class_=css)
        rows.append([time, event.get("step"), sign, message])
    notes = []
    if len(rows) < len(run.events):
        notes.append(note(f"Of {len(run.events):,} events, {len(rows)} are here."))
    return (
        join([*notes, table(["Time (UTC)", "Step", "Level", "Event"], rows)])
        if rows
        else None
    )
