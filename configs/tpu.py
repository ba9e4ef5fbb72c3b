"""Lists the TPU types that can be planned for, with their published figures."""

import dataclasses

from configs.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """Describes what all sizes of a TPU generation share.

    Attributes:
      hbm_bytes: memory that a replica can use, as reported by libtpu 0.0.52 for a
        program that did not fit (`tests/trainer/planning/test_planner.py` checks it).
      peak_flops: bfloat16 FLOP/s of a replica.
      bandwidth: bytes/s of a replica's HBM.
      clock: cycles/s of a replica.
      link: bytes/s of one of a chip's links to its neighbors, in one direction.
      replicas_per_chip: 2 if each core of a chip is a device, 1 if each chip is.
      chips_in_name: whether the number in a type's name counts chips instead of cores.
      topologies: number of chips -> their arrangement, as the compiler names it.
      compiler_options: options of the compiler's topology.

    Source of the peaks: cloud.google.com/tpu/docs/system-architecture-tpu-vm. Clocks:
    Jouppi et al., "Ten Lessons From Three Generations Shaped Google's TPUv4i", 2021
    (v2, v3, v4). Those of v5e, v5p and v6e follow from the peak: 2 FLOPs for each of
    4 x 128 x 128 multipliers a cycle, twice that in v5p, and 4 x 256 x 256 in v6e.
    Links: jax-ml.github.io/scaling-book/tpus; of v2, Jouppi et al., "A Domain-Specific
    Supercomputer for Training Deep Neural Networks", 2020.
    """

    hbm_bytes: int
    peak_flops: float
    bandwidth: float
    clock: float
    link: float
    replicas_per_chip: int
    chips_in_name: bool
    topologies: dict[int, str]
    compiler_options: dict[str, str] = dataclasses.field(default_factory=dict)


_GIB = 2**30
_FLAT = {
    4: "2x2",
    16: "4x4",
    32: "4x8",
    64: "8x8",
    128: "8x16",
    256: "16x16",
}
_CUBIC = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
}
_SMALL = {1: "1x1", 4: "2x2", 8: "2x4", **_FLAT}
GENERATIONS = {
    "v2": Generation(int(7.48 * _GIB), 23e12, 350e9, 0.70e9, 62e9, 2, False, _FLAT),
    "v3": Generation(int(15.48 * _GIB), 61.5e12, 450e9, 0.94e9, 100e9, 2, False, _FLAT),
    "v4": Generation(
        int(30.75 * _GIB),
        275e12,
        1228e9,
        1.05e9,
        45e9,
        1,
        False,
        _CUBIC,
        {"chip_config_name": "megacore"},
    ),
    "v5e": Generation(int(15.75 * _GIB), 197e12, 819e9, 1.5e9, 50e9, 1, True, _SMALL),
    "v5p": Generation(
        int(95.73 * _GIB), 459e12, 2765e9, 1.75e9, 100e9, 1, False, _CUBIC
    ),
    "v6e": Generation(
        int(31.24 * _GIB), 918e12, 1640e9, 1.75e9, 100e9, 1, True, _SMALL
    ),
}


@dataclasses.dataclass(frozen=True)
class TpuType:
    """Describes a board or pod, such as v3-8."""

    name: str
    generation: str
    num_chips: int

    @property
    def facts(self) -> Generation:
        """Returns the figures of its generation."""
        return GENERATIONS[self.generation]

    @property
    def num_replicas(self) -> int:
        """Returns the number of devices that each hold a copy of the model."""
        return self.num_chips * self.facts.replicas_per_chip

    @property
    def num_hosts(self) -> int:
        """Returns the number of host machines.

        A host serves 4 chips; v5e-8 and v6e-8 have one host for 8 chips.
        """
        if self.facts.chips_in_name and self.num_chips <= 8:
            return 1
        return self.num_chips // 4

    @property
    def topology(self) -> str:
        """Returns the compiler's name of the arrangement, such as "v3:2x2"."""
        return f"{self.generation}:{self.facts.topologies[self.num_chips]}"


def parse(name: str) -> TpuType:
    """Returns the type with a name; "v5litepod-8" is Google Cloud's name of v5e-8.

    Raises:
      UserError: the name is unknown.
    """
    tpu_type = _TYPES.get(name.replace("v5litepod", "v5e"))
    if tpu_type is None:
        raise UserError(
            f"A TPU type must be one of {', '.join(_TYPES)}. Received: {name!r}."
        )
    return tpu_type


def names() -> list[str]:
    """Returns the names of all types."""
    return list(_TYPES)


def _all_types() -> dict[str, TpuType]:
    types = {}
    for generation, facts in GENERATIONS.items():
        for num_chips in facts.topologies:
            number = num_chips if facts.chips_in_name else 2 * num_chips
            name = f"{generation}-{number}"
            types[name] = TpuType(name, generation, num_chips)
    return types


_TYPES = _all_types()
