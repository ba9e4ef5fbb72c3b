"""Finds what fits a TPU, and the fastest of it, in few compilations.

The compiler assigns memory long before it has written the machine code: what does not
fit is known in seconds. Guesses follow the growth of the peak with the microbatch.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

from configs.errors import UserError
from configs.schema import TrainingConfig
from trainer.planning import hardware
from trainer.planning.variants import Result, Variant, Variants

LARGEST_MICROBATCH = 4096
# The variants of a tuned plan whose time is estimated: the chosen one and three more.
_NUM_TIMED = 4


def first_that_fits(
    variants: Variants, settings: TrainingConfig, accumulation_steps: int
) -> tuple[Variant, Result]:
    """Compiles until a policy of rematerialization fits.

    Returns:
      The first variant that fits, or else the last, and the compiler's result.
    """
    policies: tuple[str, ...] = (settings.remat,)
    if settings.remat == "auto":
        policies = hardware.REMAT_POLICIES
    for remat in policies:
        variant = Variant(settings.microbatch_size, accumulation_steps, remat)
        result = variants.whole(variant)
        if result["fits"]:
            break
    return variant, result


def largest_microbatch(variants: Variants, start: Variant, hbm_bytes: int) -> int:
    """Returns the largest microbatch that fits; 0: not even one sequence does."""
    # With accumulation, whose sums take memory: they are needed when the global batch
    # is split into this microbatch.
    num_steps = max(start.accumulation_steps, 2)

    def of(size: int) -> Variant:
        return Variant(size, num_steps, start.remat)

    sizes = range(1, LARGEST_MICROBATCH + 1)
    size = largest_that_fits(
        lambda size: variants.memory(of(size)), sizes, start.microbatch_size, hbm_bytes
    )
    # The size of the program itself was a guess.
    while size and not variants.whole(of(size))["fits"]:
        size -= 1
    while size < LARGEST_MICROBATCH:
        if not variants.memory(of(size + 1))["fits"]:
            break
        if not variants.whole(of(size + 1))["fits"]:
            break
        size += 1
    return size


def tune(
    variants: Variants, share: int, start: int, hbm_bytes: int
) -> list[tuple[Variant, Result]]:
    """Finds the fastest ways to compute a global batch.

    A policy that recomputes more is worth its time only for a larger microbatch.

    Args:
      variants: of the run's step.
      share: sequences of the global batch for each replica.
      start: the first microbatch to try.
      hbm_bytes: available to a replica.

    Returns:
      Variants that fit, the fastest first, and the compiler's results. That of the
      first is of the whole model, where this machine can lower it.
    """
    refused: set[Variant] = set()  # for their programs, which the search leaves out
    while True:
        fitting = _fitting(variants, share, start, hbm_bytes, refused)
        if not fitting:
            return []
        # First the largest of each policy, then the larger ones.
        largest = {each.remat: each for each in fitting}
        fitting.sort(key=lambda each: (each != largest[each.remat], -each[0]))
        timed = [(each, variants.estimate(each)) for each in fitting[:_NUM_TIMED]]
        failing = {variant for variant, result in timed if not result["fits"]}
        if not failing:
            timed.sort(key=lambda each: sum(_seconds(each[1])))
            chosen, *others = timed
            whole = variants.whole(chosen[0])
            if whole["fits"]:
                return [(chosen[0], whole), *others]
            failing = {chosen[0]}
        refused |= failing


def _fitting(
    variants: Variants, share: int, start: int, hbm_bytes: int, refused: set[Variant]
) -> list[Variant]:
    """Returns the variants that fit and may be the fastest, by policy and size."""
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    fitting: list[Variant] = []
    for remat in hardware.REMAT_POLICIES:
        tried = [each for each in sizes if each > _largest(fitting)]

        def memory(size: int, remat: str = remat) -> Result:
            variant = Variant(size, share // size, remat)
            if variant in refused:
                return {"fits": False, "peak_bytes": 0}
            return variants.memory(variant)

        size = largest_that_fits(memory, tried, start, hbm_bytes) if tried else 0
        fitting += [
            Variant(each, share // each, remat) for each in tried if each <= size
        ]
    return fitting


def _largest(variants: Sequence[Variant]) -> int:
    return max((each.microbatch_size for each in variants), default=0)


def _seconds(result: Result) -> tuple[float, float]:
    time = result["step_time"]
    if time is None:
        raise UserError(
            "`--tune` needs a compiler that shows its program. Received: a libtpu that "
            "does not. Install the extra `plan` again, or set "
            "`training.microbatch_size` and `training.remat` yourself."
        )
    return time["seconds_low"], time["seconds_high"]


def largest_that_fits(
    compile_step: Callable[[int], dict[str, Any]],
    sizes: Sequence[int],
    start: int,
    hbm_bytes: int,
) -> int:
    """Finds the largest of some sizes that fits, in few guesses.

    A guess follows the growth of the peak between the two sizes that are nearest to the
    available memory. Where that points beyond what is known already, guesses leave the
    nearest known size by steps of 1, 2, 4, … sizes.

    Args:
      compile_step: size -> `fits` and `peak_bytes`; 0: not known.
      sizes: to choose from, ascending.
      start: the first guess is the largest size up to it, or the smallest of all.
      hbm_bytes: available to a replica.

    Returns:
      The size; 0: not even the smallest fits.
    """
    peaks: dict[int, int] = {}
    low, high = -1, len(sizes)  # the largest that fits, and the smallest that does not
    guess, stride = max(bisect.bisect(sizes, start) - 1, 0), 1
    while high - low > 1:
        result = compile_step(sizes[guess])
        if result["peak_bytes"]:
            peaks[sizes[guess]] = result["peak_bytes"]
        low, high = (guess, high) if result["fits"] else (low, guess)
        target = low + 1
        if peaks:
            target = bisect.bisect(sizes, _size_at(peaks, hbm_bytes)) - 1
        if low < target < high:
            guess, stride = target, 1
            continue
        guess = low + stride if target <= low else high - stride
        stride *= 2
        guess = min(max(guess, low + 1), high - 1)
        if stride > 4:  # far from where the peaks point to
            middle = (low + high) // 2
            guess = max(guess, middle) if target >= high else min(guess, middle)
    return sizes[low] if low >= 0 else 0


def _size_at(peaks: dict[int, int], hbm_bytes: int) -> float:
    """Returns the size at which the peak reaches the available memory."""
    known = sorted(peaks.items(), key=lambda each: abs(each[1] - hbm_bytes))
    (size, peak), (other_size, other) = (*known, (0, 0))[:2]
    growth = max((peak - other) / (size - other_size), 1)
    return size + (hbm_bytes - peak) / growth
