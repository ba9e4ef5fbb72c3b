"""How long a compiled step takes, by the cycles that the TPU's compiler estimates.

The text of an optimized TPU program states `estimated_cycles` for each fusion, product
and copy. Added up through the loops and divided by the clock, they are a time. No TPU
has confirmed it: `tests/trainer/planning/test_step_time.py` compares a large product
with the published peak, and an elementwise program with the published bandwidth.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

from configs import tpu

# Part of a step -> what the names of its operations hold; the first that fits counts.
_PARTS = {
    "optimizer": r"(^|/)(Ada\w*|Muon|SkippingSGD|global_norm\w*)/",
    "cross-entropy": r"cross_entropy",
    "attention": r"attention",
    "layer norms": r"layer_norm",
    "embedding": r"embed",
    "other products": r"einsum|MatMul",
}
_BYTES = {"pred": 1, "bf16": 2, "token": 0}
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$")
# They move nothing; or their time is hidden behind other work.
_FREE = re.compile(
    r"parameter|constant|tuple|get-tuple-element|bitcast\S*|after-all|opt-barrier|iota|"
    r"partition-id|replica-id|add-dependency|\S+-(start|done|update)|all-reduce"
)
# The share of HBM's bandwidth at which a reduction is counted in the lower figure.
_REDUCTION_EFFICIENCY = 0.85


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        """Returns the names of the instructions that it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, pattern: str) -> str:
        """Returns the first match of `PATTERN`'s group; "" without one."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""


def estimate(program: str, generation: str) -> dict[str, object]:
    """Estimates the seconds that a replica computes.

    Two figures, since the compiler overstates reductions outside of products four to
    ten times: `seconds_high` is its word. In `seconds_low` they take at most the time
    in which 85 % of the bandwidth reads and writes what they use. Sums over the TPU's
    links are not in it.

    Args:
      program: text of the optimized HLO.
      generation: of the TPU, such as "v3".

    Returns:
      `seconds_low`, `seconds_high`, and `parts`: part of the step -> its seconds of
      `seconds_low`.
    """
    facts = tpu.GENERATIONS[generation]
    computations, entry = _parse(program)
    high = 0.0
    parts: dict[str, float] = collections.defaultdict(float)
    for instruction, scope, times in _executed(computations, entry):
        cycles = int(instruction.attribute(r'"estimated_cycles":"(-?\d+)"') or 0)
        moved = _size(instruction.shape)
        moved += sum(_size(scope.get(name, "")) for name in instruction.operands)
        if cycles > 0:
            seconds = cycles / facts.clock
        elif instruction.opcode == "custom-call":
            seconds = 0.0  # a view of slices or an assumption; a kernel states cycles
        else:
            # A slice reads no more than it writes.
            seconds = min(moved, 2 * _size(instruction.shape)) / facts.bandwidth
        high += times * seconds
        if _is_reduction(instruction, computations):
            at_most = moved / (_REDUCTION_EFFICIENCY * facts.bandwidth)
            seconds = min(seconds, at_most)
        name = instruction.attribute(r'op_name="([^"]*)"')
        fits = (part for part, pattern in _PARTS.items() if re.search(pattern, name))
        parts[next(fits, "other")] += times * seconds
    return {
        "seconds_low": sum(parts.values()),
        "seconds_high": high,
        "parts": dict(sorted(parts.items(), key=lambda part: -part[1])),
    }


_Computations = dict[str, list[_Instruction]]


def _parse(program: str) -> tuple[_Computations, str]:
    """Returns the instructions of each computation, and the name of the first."""
    computations: _Computations = {}
    entry = current = ""
    for line in program.splitlines():
        if head := _HEAD.match(line):
            current = head.group(2)
            computations[current] = []
            entry = current if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            computations[current].append(_instruction(*match.groups()))
    return computations, entry


def _instruction(name: str, text: str) -> _Instruction:
    """Splits `SHAPE OPCODE(OPERANDS), ATTRIBUTES`; a shape may be a tuple."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    return _Instruction(name, shape, rest[:start], rest[start:end], rest[end:])


def _closing(text: str, start: int) -> int:
    """Returns the position behind the parenthesis that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if not depth:
            return index + 1
    raise ValueError(f"no parenthesis closes that of {text[start : start + 100]}")


def _executed(
    computations: _Computations, name: str, times: int = 1
) -> Iterator[tuple[_Instruction, dict[str, str], int]]:
    """Yields what runs, with the shapes beside it, and how often."""
    scope = {each.name: each.shape for each in computations[name]}
    for instruction in computations[name]:
        opcode = instruction.opcode
        if opcode == "while":
            condition = instruction.attribute(r"condition=%?([\w.\-]+)")
            count = max(_constants(computations[condition], computations))
            body = instruction.attribute(r"body=%?([\w.\-]+)")
            yield from _executed(computations, body, times * count)
        elif opcode == "call":
            called = instruction.attribute(r"to_apply=%?([\w.\-]+)")
            yield from _executed(computations, called, times)
        elif opcode == "conditional":
            branches = r"(?:true_computation=|branch_computations=\{)%?([\w.\-]+)"
            called = instruction.attribute(branches)
            yield from _executed(computations, called, times)
        elif not _FREE.fullmatch(opcode):
            yield instruction, scope, times


def _constants(
    instructions: list[_Instruction], computations: _Computations
) -> Iterator[int]:
    """Yields the integers of a loop's condition, which compares with their largest."""
    for each in _with_fused(instructions, computations):
        if each.opcode == "constant" and re.fullmatch(r"\(\d+\)", each.arguments):
            yield int(each.arguments[1:-1])


def _is_reduction(instruction: _Instruction, computations: _Computations) -> bool:
    opcodes = {each.opcode for each in _with_fused([instruction], computations)}
    return "reduce" in opcodes and "convolution" not in opcodes


def _with_fused(
    instructions: list[_Instruction], computations: _Computations
) -> Iterator[_Instruction]:
    """Yields instructions, and all that are fused into them."""
    for instruction in instructions:
        yield instruction
        if instruction.opcode == "fusion":
            fused = computations[instruction.attribute(r"calls=%?([\w.\-]+)")]
            yield from _with_fused(fused, computations)


def _size(shape: str) -> int:
    """Returns the bytes of a shape, or of all shapes of a tuple."""
    total = 0
    for kind, dimensions in _SHAPE.findall(shape):
        size = _BYTES.get(kind) or int(kind[1:]) // 8
        for dimension in filter(None, dimensions.split(",")):
            size *= int(dimension)
        total += size
    return total
