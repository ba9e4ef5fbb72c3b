"""The end of a run for people: a short table and the loss curve."""

import io
from typing import Any

from tfrecords.storage import files

CURVE_NAME = "loss_curve.png"


def table(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the figures that sum up a run.

    Args:
      lines: what `metrics.load` returned.
    """
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation_loss" in line]
    if not training:
        return {}
    speeds = sorted(line["tokens_per_second"] for line in training)
    figures = {"steps": lines[-1]["step"], "tokens": training[-1]["tokens"]}
    figures["tokens_per_second"] = speeds[len(speeds) // 2]  # median
    figures["training_loss"] = training[-1]["loss"]
    if validation:
        for name, line in (("before", validation[0]), ("after", validation[-1])):
            figures[f"validation_loss_{name}"] = line["validation_loss"]
            figures[f"validation_perplexity_{name}"] = line["validation_perplexity"]
    return figures


def draw_curve(lines: list[dict[str, Any]], workdir: str) -> str:
    """Draws training and validation loss over the steps as a PNG; returns its path."""
    import matplotlib

    matplotlib.use("Agg")  # no display is needed
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, label, style in (
        ("loss", "training", {"color": "#9aa5b1", "linewidth": 1}),
        ("validation_loss", "validation", {"color": "#0b6bcb", "marker": "o"}),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
            # Both curves end close to each other: one label, of the one that counts.
            step, loss = points[-1]
            end = f"{loss:.2f}" if name == "validation_loss" else ""
            axes.annotate(end, (step, loss), xytext=(6, -4), textcoords="offset points")
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    path = files.join(workdir, CURVE_NAME)
    files.write(path, image.getvalue())
    return path
