"""The sections of a report on what made the runs: data, configuration, events.

Each takes all runs of the page, and returns None where there is nothing to show.
"""

import itertools
from collections.abc import Mapping, Sequence

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

_MOST_EVENTS = 200
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
