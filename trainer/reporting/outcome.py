"""The sections of a report on what came of the runs: scores, samples, memory.

Each takes all runs of the page, and returns None where there is nothing to show.
"""

from collections.abc import Sequence
from typing import Any

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
