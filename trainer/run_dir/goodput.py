"""Measures goodput: the share of a run's time that went into steps that it keeps.

The rest went into machines that were waited for, starts, compilation, saves,
evaluations, and steps that an interruption lost.
"""

import dataclasses
import datetime
import math
import statistics
from collections.abc import Sequence
from typing import Any

from trainer.run_dir import journal


@dataclasses.dataclass(frozen=True)
class Goodput:
    """The times of a run.

    Attributes:
      training_seconds: in steps that stay.
      total_seconds: from the first start to the last event.
      num_starts: of the training.
      seconds_per_step: the median.
    """

    training_seconds: float
    total_seconds: float
    num_starts: int
    seconds_per_step: float

    @property
    def share(self) -> float:
        """The goodput, from 0 to 1."""
        return min(self.training_seconds / self.total_seconds, 1.0)

    def best_checkpoint_interval(self, save_seconds: float) -> int | None:
        """Returns the interval, in steps, that loses least to saves and interruptions.

        sqrt(2 * cost of a save * time between interruptions): J. W. Young, "A first
        order approximation to the optimum checkpoint interval", CACM 17 (9), 1974.

        Args:
          save_seconds: by which a save holds the training up.

        Returns:
          None where the run has never been interrupted.
        """
        if self.num_starts < 2:
            return None
        between = self.total_seconds / (self.num_starts - 1)
        return math.ceil(math.sqrt(2 * save_seconds * between) / self.seconds_per_step)


def measure(
    lines: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    end: datetime.datetime | None = None,
) -> Goodput | None:
    """Measures a run.

    Args:
      lines: of `metrics.jsonl`: those of lost steps are not in it.
      events: lines of `events.jsonl`.
      end: of the run; None: the last event.

    Returns:
      None before the first logged step.
    """
    starts = [event for event in events if journal.STARTS in event["message"]]
    steps = [line for line in lines if "tokens_per_second" in line]
    if not starts or not steps:
        return None
    speed = statistics.median(line["tokens_per_second"] for line in steps)
    seconds, before = 0.0, {"step": 0, "tokens": 0}
    for line in steps:
        # The first execution after a start is slow, since it compiles.
        line_speed = max(line["tokens_per_second"], speed)
        seconds += (line["tokens"] - before["tokens"]) / line_speed
        before = line
    tokens_per_step = before["tokens"] / before["step"]
    total = ((end or _time(events[-1])) - _time(starts[0])).total_seconds()
    return Goodput(seconds, max(total, seconds), len(starts), tokens_per_step / speed)


def _time(event: dict[str, Any]) -> datetime.datetime:
    return datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00"))
