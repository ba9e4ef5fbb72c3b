"""How fast a planned step is: bounds by arithmetic, an estimate by the compiler."""

from typing import Any

from configs import tpu

# What the estimated speed was compared with, in an experiment: see docs/tpu.md.
_ESTIMATE_BASIS = {"v3": "near published runs of GPT-2 on v3"}


def bounds(
    step_flops: int,
    moved_bytes: int,
    tpu_type: tpu.TpuType,
    *,
    num_tokens: int,
    num_steps: int,
) -> dict[str, Any]:
    """Returns bounds on the speed: all matrix products at the peak, or the memory.

    Args:
      step_flops: of a global batch.
      moved_bytes: that a step moves at least: weights, optimizer state and batch are
        read, and all but the batch are written.
      tpu_type: to plan for.
      num_tokens: of a step.
      num_steps: of the run; 0: not known.
    """
    seconds = max(
        step_flops / tpu_type.num_replicas / tpu_type.facts.peak_flops,
        moved_bytes / tpu_type.facts.bandwidth,
    )
    return {
        "flops_per_step": step_flops,
        "step_seconds_lower_bound": seconds,
        "tokens_per_second_upper_bound": num_tokens / seconds,
        "num_steps": num_steps or None,
        "hours_lower_bound": num_steps * seconds / 3600 if num_steps else None,
    }


def estimate(
    compiled: dict[str, Any], tpu_type: tpu.TpuType, num_tokens: int
) -> dict[str, Any]:
    """Returns the compiler's own estimate of the speed; None where it gives none.

    The sum over the replicas is added by a model, since the compiler leaves it out: a
    ring through all chips, which send in both directions at once.

    Args:
      compiled: result of `Variants`.
      tpu_type: to plan for.
      num_tokens: of a step.
    """
    step_time, chips = compiled.get("step_time"), tpu_type.num_chips
    names = (
        *("step_seconds_estimate", "tokens_per_second_estimate"),
        *("step_shares", "estimate_basis"),
    )
    if step_time is None:
        return dict.fromkeys(names)
    num_bytes = 4 * compiled["trained_parameter_count"]  # gradients in float32
    moved = 2 * (chips - 1) / chips * num_bytes
    all_reduce = moved / (2 * tpu_type.facts.link)
    seconds = [step_time[name] + all_reduce for name in ("seconds_low", "seconds_high")]
    parts = {**step_time["parts"], "all-reduce": all_reduce}
    speeds = [num_tokens / value for value in reversed(seconds)]
    shares = {part: value / sum(parts.values()) for part, value in parts.items()}
    basis = _ESTIMATE_BASIS.get(tpu_type.generation, "it ranks programs")
    return dict(zip(names, (seconds, speeds, shares, basis), strict=True))
