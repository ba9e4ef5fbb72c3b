"""Compiles a step with the TPU's own compiler: HLO in, one JSON object out.

`python -m trainer.planning.tpu_compiler STEP.hlo v3-8`. It needs no TPU: libtpu
contains the compiler. It runs in a separate process, since TensorFlow cannot load the
libtpu that this needs. It is the only file that uses JAX and its private parts.
"""

import json
import os
import re
import sys
import time
from typing import Any

from configs import tpu
from trainer.planning import step_time

# libtpu would otherwise ask the machine, or guess; the last allows other processes.
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def compile_step(hlo: bytes, tpu_type: tpu.TpuType) -> dict[str, Any]:
    """Compiles a step for all replicas of a TPU.

    Args:
      hlo: serialized HloModuleProto.
      tpu_type: to compile for.

    Returns:
      `fits`, `message` (of the compiler, where it refused) and `compile_seconds`. Where
      it fits, also bytes of a replica: `argument_bytes`, `output_bytes`,
      `temporary_bytes`, `generated_code_bytes`, `peak_bytes`, `bytes_accessed`;
      `replicas_added_up`, the replicas of the smallest all-reduce; and `step_time`, see
      `step_time.estimate`, None where the compiler does not show its program (v6e).
    """
    import numpy as np
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.errors import JaxRuntimeError
    from jax.experimental import topologies

    start = time.perf_counter()
    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=tpu_type.topology,
        **tpu_type.facts.compiler_options,
    )
    devices: list[Any] = topology.devices[: tpu_type.num_replicas]
    options = compiler.get_compile_options(
        num_replicas=len(devices),
        num_partitions=1,
        device_assignment=np.array([[device.id] for device in devices]),
    )
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(xla_client._xla.mlir.hlo_to_stablehlo(hlo))
        _drop_copies(module.operation)
        text = str(module.operation.get_asm(large_elements_limit=16))
        if re.search(r"set_dimension_size|tensor<\?|bounds<", text):
            return _refused("The step has tensors of dynamic shape.", start)
        replicas_added_up = _replicas_added_up(text)
        del text  # it is large for GPT-2 XL
        try:
            executable = devices[0].client.compile(
                module,
                executable_devices=xla_client.DeviceList(tuple(devices)),
                compile_options=options,
            )
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _refused(str(error).split("HLO module")[0].strip(), start)
    return {
        "fits": True,
        "message": "",
        "compile_seconds": time.perf_counter() - start,
        "replicas_added_up": replicas_added_up,
        "step_time": _step_time(executable, tpu_type.generation),
        **_bytes(executable),
    }


def _bytes(executable: Any) -> dict[str, int]:
    """Returns the bytes that a replica holds and moves, by the compiler."""
    memory = executable.get_compiled_memory_stats()
    new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "argument_bytes": memory.argument_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "generated_code_bytes": memory.generated_code_size_in_bytes,
        # The program itself is in the same memory.
        "peak_bytes": memory.argument_size_in_bytes
        + new_outputs
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        "bytes_accessed": int(executable.cost_analysis()["bytes accessed"]),
    }


def _step_time(executable: Any, generation: str) -> dict[str, Any] | None:
    from jax.errors import JaxRuntimeError

    try:
        (module,) = executable.hlo_modules()
    except JaxRuntimeError:
        return None
    return step_time.estimate(module.to_string(), generation)


def _replicas_added_up(step: str) -> int:
    """Returns the number of replicas of the smallest all-reduce; 0 without any.

    This reads the compiler's input: on a pod, the compiler splits an all-reduce into
    several over rings.
    """
    sizes = re.findall(r"replica_groups = [^:]*: tensor<\d+x(\d+)xi64>", step)
    return min(map(int, sizes), default=0)


def _refused(message: str, start: float) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    return {"fits": False, "message": message, "compile_seconds": seconds}


def _drop_copies(operation: Any) -> None:
    """Removes `mhlo.copy` on the outputs, which the compiler does not accept."""
    for region in operation.regions:
        for block in region.blocks:
            for inner in list(block.operations):
                if inner.operation.name == "mhlo.copy":
                    copy = inner.operation
                    copy.results[0].replace_all_uses_with(copy.operands[0])
                    copy.erase()
                else:
                    _drop_copies(inner)


if __name__ == "__main__":
    os.environ.update(_ENVIRONMENT)
    with open(sys.argv[1], "rb") as stream:
        print(json.dumps(compile_step(stream.read(), tpu.parse(sys.argv[2]))))
