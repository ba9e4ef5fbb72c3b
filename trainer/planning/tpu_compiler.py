"""Compiles a step with the TPU's own compiler: HLO in, one JSON object out.

`python -m trainer.planning.tpu_compiler STEP.hlo v3-8 [memory]`. It needs no TPU:
libtpu contains the compiler. It runs in a separate process, since TensorFlow cannot
load the libtpu that this needs. It is the only file that uses JAX and its private
parts.
"""

import concurrent.futures
import functools
import glob
import json
import os
import re
import sys
import time
from collections.abc import Callable
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


def compile_step(
    hlo: bytes, tpu_type: tpu.TpuType, folder: str, memory_only: bool
) -> dict[str, Any]:
    """Compiles a step for all replicas of a TPU.

    Args:
      hlo: serialized HloModuleProto.
      tpu_type: to compile for.
      folder: an empty one, that the compiler writes intermediate results to.
      memory_only: do not wait for the machine code, which takes nearly all of the time.

    Returns:
      `fits`, `message` (of the compiler, where it refused) and `compile_seconds`. Where
      it fits, also bytes of a replica: `argument_bytes`, `temporary_bytes` and
      `peak_bytes`; and `replicas_added_up`, the replicas of the smallest all-reduce.
      Unless `memory_only`, the program is part of the peak, and the result also has
      `output_bytes`, `generated_code_bytes`, `bytes_accessed` and `step_time`, see
      `step_time.estimate`, None where the compiler does not show its program.
    """
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.errors import JaxRuntimeError

    start = time.perf_counter()
    devices, options = _target(tpu_type, folder)
    with mlir.make_ir_context() as context:
        context.allow_unregistered_dialects = True
        module = ir.Module.parse(xla_client._xla.mlir.hlo_to_stablehlo(hlo))
        _drop_copies(module.operation)
        text = str(module.operation.get_asm(large_elements_limit=16))
        if re.search(r"set_dimension_size|tensor<\?|bounds<", text):
            return _refused("The step has tensors of dynamic shape.", start)
        replicas_added_up = _replicas_added_up(text)
        del text  # it is large for GPT-2 XL
        compile_module = functools.partial(
            devices[0].client.compile,
            module,
            executable_devices=xla_client.DeviceList(tuple(devices)),
            compile_options=options,
        )
        try:
            if memory_only:
                hbm_bytes = tpu_type.facts.hbm_bytes
                figures = _assigned_bytes(compile_module, folder, hbm_bytes)
            else:
                figures = _bytes(compile_module())
        except JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return _refused(str(error).split("HLO module")[0].strip(), start)
    return {
        "fits": True,
        "message": "",
        "compile_seconds": time.perf_counter() - start,
        "replicas_added_up": replicas_added_up,
        "step_time": _step_time(folder, tpu_type.generation),
        **figures,
    }


def _target(tpu_type: tpu.TpuType, folder: str) -> tuple[list[Any], Any]:
    """Returns the TPU's devices, and the options to compile for all of them.

    Args:
      tpu_type: to compile for.
      folder: that the compiler writes its intermediate results to.
    """
    import numpy as np
    from jax._src import compiler
    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="tpu",
        topology_name=tpu_type.topology,
        **tpu_type.facts.compiler_options,
    )
    devices: list[Any] = topology.devices[: tpu_type.num_replicas]
    # Declared as strings; the compiler refuses a bool that is one.
    dump: Any = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
    options = compiler.get_compile_options(
        num_replicas=len(devices),
        num_partitions=1,
        device_assignment=np.array([[device.id] for device in devices]),
        env_options_overrides=dump,
    )
    return devices, options


def _assigned_bytes(
    compile_module: Callable[[], Any], folder: str, hbm_bytes: int
) -> dict[str, int]:
    """Returns the bytes of a replica, once the compiler has assigned its buffers.

    The compiler goes on in its thread, until the process ends.
    """
    pool = concurrent.futures.ThreadPoolExecutor(1)
    compilation = pool.submit(compile_module)
    # It is written next after the assignment.
    while not glob.glob(f"{folder}/*.after_optimizations.txt"):
        if compilation.done():
            compilation.result()  # raises what the compiler refused
            raise FileNotFoundError("This libtpu does not write its buffer assignment.")
        time.sleep(0.05)
    (path,) = glob.glob(f"{folder}/*.after_optimizations-buffer-assignment.txt")
    sizes = {"argument_bytes": 0, "temporary_bytes": 0}
    # Other colors than the first are memories within the core.
    line = r"allocation \d+: size (\d+), (?!color|.*thread-local)(.*)"
    with open(path, encoding="utf-8") as stream:
        for match in filter(None, (re.match(line, each) for each in stream)):
            is_argument = ", parameter " in match.group(2)
            name = "argument_bytes" if is_argument else "temporary_bytes"
            sizes[name] += int(match.group(1))
    peak = sum(sizes.values())
    if peak > hbm_bytes:
        compilation.result()  # raises what the compiler says next
    return {**sizes, "peak_bytes": peak}


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


def _step_time(folder: str, generation: str) -> dict[str, Any] | None:
    # `executable.hlo_modules()` cannot read the program of a whole step for v6e.
    for path in glob.glob(f"{folder}/*.after_codegen.txt"):
        with open(path, encoding="utf-8") as program:
            return step_time.estimate(program.read(), generation)
    return None


def _replicas_added_up(step: str) -> int:
    """Returns the number of replicas of the smallest all-reduce; 0 without any.

    This reads the compiler's input: on a pod, the compiler splits an all-reduce into
    several over rings.
    """
    sizes = re.findall(r"replica_groups = [^:]*: tensor<\d+x(\d+)xi64>", step)
    return min(map(int, sizes), default=0)


def _refused(message: str, start: float) -> dict[str, Any]:
    """Returns the result for a step that is refused; its peak, if the message says."""
    size = re.search(r"\(([\d.]+)G\) exceeds available HBM", message)
    return {
        "fits": False,
        "message": message,
        "compile_seconds": time.perf_counter() - start,
        "peak_bytes": int(float(size.group(1)) * 2**30) if size else 0,
    }


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
    hlo_path, tpu_name, *mode = sys.argv[1:]
    with open(hlo_path, "rb") as stream:
        step = stream.read()
    # The caller removes it with the step, when no thread writes to it any more.
    dump = f"{hlo_path}.dump"
    result = compile_step(step, tpu.parse(tpu_name), dump, "memory" in mode)
    print(json.dumps(result), flush=True)
    os._exit(0)  # a compiler that still runs is not waited for
