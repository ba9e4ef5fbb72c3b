"""The end of a run for people: a few figures and the loss curve."""

import io
import statistics
from typing import Any

from tfrecords.storage import files
from trainer.run_dir import layout


def table(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the figures that sum up a run.

    Args:
      lines: of `metrics.load`.

    Returns:
      Name -> value; every validation metric of the task before and after training.
      Empty before the first logged step.
    """
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation_loss" in line]
    if not training:
        return {}
    figures = {
        "steps": lines[-1]["step"],
        "tokens": training[-1]["tokens"],
        "tokens_per_second": statistics.median_high(
            line["tokens_per_second"] for line in training
        ),
        "training_loss": training[-1]["loss"],
    }
    if validation:
        for when, line in (("before", validation[0]), ("after", validation[-1])):
            for name, value in line.items():
                if name.startswith("validation_"):
                    figures[f"{name}_{when}"] = value
    return figures


def draw_curve(lines: list[dict[str, Any]], workdir: str) -> str:
    """Draws training and validation loss over the steps as a PNG; returns its path."""
    import matplotlib

    matplotlib.use("Agg")  # needs no display
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, label, style in (
        ("loss", "training", {"color": "#9aa5b1", "linewidth": 1}),
        ("validation_loss", "validation", {"color": "#0b6bcb", "marker": "o"}),
    ):
        points = [(line["step"], line[name]) for line in lines if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
            # The curves end close to each other: only the validation loss has a label.
            step, loss = points[-1]
            text = f"{loss:.2f}" if name == "validation_loss" else ""
            axes.annotate(
                text, (step, loss), xytext=(6, -4), textcoords="offset points"
            )
    axes.set_xlabel("step")
    is_classifier = any("validation_accuracy" in line for line in lines)
    axes.set_ylabel(f"loss (nats per {'text' if is_classifier else 'token'})")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    path = files.join(workdir, layout.LOSS_CURVE)
    files.write(path, image.getvalue())
    return path
