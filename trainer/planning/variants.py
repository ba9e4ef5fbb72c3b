"""Compiles the variants of a run's step, each once, and deep models by a few layers.

A deep model takes minutes, and more memory than a small machine has. All of its layers
are alike: what two models of few layers take, extended in a line, is what it takes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from absl import logging

from trainer.tasks.host_memory import system_memory

Result = dict[str, Any]

# Up to so many layers, the whole compiles about as fast as two models of few layers.
_MOST_SHALLOW_LAYERS = 16
# The layers of these two. The time grows evenly from the first layer on; the memory
# does once the layers take more than the logits.
_TIMED_LAYERS, _MEASURED_LAYERS = (1, 3), (6, 10)
# To lower a step takes this much of this machine's memory, in sizes of the weights.
_LOWERING_FACTOR = 4


class Variant(NamedTuple):
    """How a global batch is computed.

    Attributes:
      microbatch_size: sequences that a replica processes at once.
      accumulation_steps: microbatches of a step.
      remat: policy of rematerialization.
    """

    microbatch_size: int
    accumulation_steps: int
    remat: str


class Variants:
    """Compiles variants of a step.

    Args:
      lower: (number of layers, **variant) -> the HLO and the sizes of the variables.
      compile_hlo: (HLO, memory_only) -> what `tpu_compiler.compile_step` returns.
      num_layers: of the model.
      hbm_bytes: available to a replica.
      layers_are_alike: whether a model of fewer layers tells how the whole grows.
      after_each: called after each compilation.
    """

    def __init__(
        self,
        lower: Callable[..., tuple[bytes, dict[str, int]]],
        compile_hlo: Callable[[bytes, bool], Result],
        num_layers: int,
        hbm_bytes: int,
        *,
        layers_are_alike: bool = True,
        after_each: Callable[[], Any] = lambda: None,
    ):
        self._lower = functools.cache(lower)
        self._compile_hlo = functools.cache(compile_hlo)
        self._num_layers = num_layers
        self._hbm_bytes = hbm_bytes
        self._is_deep = layers_are_alike and num_layers > _MOST_SHALLOW_LAYERS
        self._after_each = after_each
        self._code_bytes = 0

    def memory(self, variant: Variant) -> Result:
        """Returns what a variant holds; its program counts as that of the last whole.

        Of a deep model it is extrapolated.
        """
        layers = _MEASURED_LAYERS if self._is_deep else (self._num_layers,)
        result = self._compile(variant, layers, memory_only=True)
        return self._judge(result, self._code_bytes)

    def estimate(self, variant: Variant) -> Result:
        """Returns memory and time of a variant; of a deep model, extrapolated."""
        if not self._is_deep:
            return self.whole(variant)
        memory = self.memory(variant)
        time = self._compile(variant, _TIMED_LAYERS)
        if not (memory["fits"] and time["fits"]):
            return memory
        self._code_bytes = time["generated_code_bytes"]
        names = ("argument_bytes", "temporary_bytes", "extrapolated_from")
        sizes = {name: memory[name] for name in names}
        return self._judge({**time, **sizes}, self._code_bytes)

    def whole(self, variant: Variant) -> Result:
        """Returns the figures of the whole model.

        Only where this machine cannot lower a deep model, they are extrapolated.
        """
        if self._is_deep:
            memory = self.memory(variant)
            if not (memory["fits"] and _can_lower(memory["parameter_count"])):
                return self.estimate(variant)
        result = self._compile(variant, (self._num_layers,))
        self._code_bytes = result.get("generated_code_bytes", self._code_bytes)
        return result

    def _compile(
        self, variant: Variant, layers: Sequence[int], memory_only: bool = False
    ) -> Result:
        """Compiles models of some layers, and extends them to all layers."""
        results = []
        for num_layers in layers:
            hlo, sizes = self._lower(num_layers=num_layers, **variant._asdict())
            results.append({**sizes, **self._compile_hlo(hlo, memory_only)})
            _log(variant, num_layers, results[-1])
            self._after_each()
            if not results[-1]["fits"]:  # then more layers do not, either
                break
        if len(results) < 2:
            return results[-1]
        share = (self._num_layers - layers[0]) / (layers[1] - layers[0])
        return {
            **_extend(results[0], results[1], share),
            "fits": results[-1]["fits"],
            "compile_seconds": sum(each["compile_seconds"] for each in results),
            "extrapolated_from": list(layers),
        }

    def _judge(self, result: Result, code_bytes: int) -> Result:
        """Adds the program to the peak, and says whether all of it fits."""
        if not result["fits"]:
            return result
        names = ("argument_bytes", "temporary_bytes")
        peak = sum(result[name] for name in names) + code_bytes
        fits = peak <= self._hbm_bytes
        message = f"Step and program need {gib(peak)} of {gib(self._hbm_bytes)}."
        return {
            **result,
            "generated_code_bytes": code_bytes,
            "peak_bytes": peak,
            "fits": fits,
            "message": "" if fits else message,
        }


def _extend(first: Any, second: Any, share: float) -> Any:
    """Returns the value at `share` on the line from the first (0) to the second (1)."""
    if isinstance(first, dict) and isinstance(second, dict):
        names = dict.fromkeys((*first, *second))
        return {n: _extend(first.get(n, 0), second.get(n, 0), share) for n in names}
    if isinstance(second, (int, float)):
        return type(second)(first + (second - first) * share)
    return second


def _can_lower(parameter_count: int) -> bool:
    available = system_memory()
    return available is None or _LOWERING_FACTOR * 4 * parameter_count < available


def _log(variant: Variant, num_layers: int, result: Result) -> None:
    size = f"peak {gib(result['peak_bytes'])}" if result["fits"] else "too large"
    logging.info(
        "microbatch %d, remat %s, %d layers: %s",
        variant.microbatch_size,
        variant.remat,
        num_layers,
        size,
    )


def gib(num_bytes: int | None) -> str:
    """Returns bytes as GiB; "-" where they are not known."""
    return "-" if num_bytes is None else f"{num_bytes / 2**30:,.2f} GiB"
