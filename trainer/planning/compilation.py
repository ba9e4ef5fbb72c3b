"""Compiles the training step for a TPU that this machine does not have.

TensorFlow lowers the step on the CPU, including the sum over all replicas of the TPU.
`tpu_compiler`, in a separate process, compiles it.
"""

import concurrent.futures.process
import copy
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

from configs import tpu
from configs.errors import UserError
from configs.schema import Config
from trainer.models import lora, variables
from trainer.models.architecture import Architecture, Options
from trainer.runtime import strategy as strategies
from trainer.tasks.create import assemble, flops
from trainer.tasks.task import Task

# Forks processes from one that imports TensorFlow once for all of them.
processes: multiprocessing.context.BaseContext
processes = multiprocessing.get_context("forkserver")


def run_in_process(function: Callable[..., Any], **arguments: Any) -> Any:
    """Returns `function(**arguments)`, called in a separate process.

    Lowering allocates the model's weights, 6 GB for GPT-2 XL, and does not free all of
    it; the compiler needs that memory next.

    Raises:
      UserError: the process was killed.
    """
    processes.set_forkserver_preload([__name__])
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=processes) as pool:
            return pool.submit(function, **arguments).result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "The process that lowers the step was killed: use a machine with more "
            "memory."
        ) from error


def lower_run(
    *,
    config: Config,
    architecture: Architecture,
    task: Task,
    model_config: Any,
    num_layers: int,
    sequence_length: int,
    num_steps: int,
    num_replicas: int,
    microbatch_size: int,
    accumulation_steps: int,
    remat: str,
) -> tuple[bytes, dict[str, int]]:
    """Lowers a run's step; returns the HLO and the sizes of its variables.

    `num_layers` takes the place of the configuration's.
    """
    model_config = copy.deepcopy(model_config)
    model_config.num_hidden_layers = num_layers
    model = architecture.build(model_config)
    lora.attach(model, config.model.lora, config.training.seed)
    training_step = assemble(
        model,
        architecture,
        task,
        config,
        num_steps,
        accumulation_steps=accumulation_steps,
        options=Options(
            config.training.precision,
            remat,
            compiled=True,
            # Which token it is does not change the program.
            end_token=0 if config.data.attention == "document" else None,
        ),
        all_reduce=all_reduce_over(num_replicas),
    )
    batch_size = microbatch_size * accumulation_steps
    sizes = {
        "parameter_count": variables.num_parameters(model.variables),
        "trained_parameter_count": variables.num_parameters(training_step.trained),
        "optimizer_state_bytes": variables.num_bytes(training_step.optimizer.variables),
        "flops_per_step": flops(
            training_step, sequence_length, config.training.global_batch_size
        ),
    }
    signature = task.signature(batch_size, sequence_length)
    return lower(training_step.packed_step, signature), sizes


def lower(
    step: Callable[[dict[str, tf.Tensor]], Any], signature: dict[str, tf.TensorSpec]
) -> bytes:
    """Lowers one replica's step to HLO, as a serialized HloModuleProto.

    Args:
      step: of a `TrainingStep`, such as `packed_step`.
      signature: of the step's batch.

    Raises:
      UserError: part of the step would run on the host, or this TensorFlow cannot
        compile.
    """
    names = list(signature)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(*features: tf.Tensor) -> Any:
        return step(dict(zip(names, features, strict=True)))

    try:
        ir = compiled.experimental_get_compiler_ir(*signature.values())
        return ir(stage="hlo_serialized")
    except (ValueError, tf.errors.OpError) as error:
        if not strategies.compiles_on_host():
            raise UserError(
                "A plan must be made by a TensorFlow that compiles for the CPU. "
                "Received: `tensorflow-tpu`, which does not. Make it in another "
                "environment: `make plan VENV=.venv-plan TPU=…`."
            ) from error
        if "unsupported operations" not in str(error):
            raise
        raise UserError(
            "The whole step must be compiled: nothing of it may run on the host. "
            f"TensorFlow reports: {str(error).strip().splitlines()[0]}"
        ) from error


def compile_hlo(
    hlo: bytes, tpu_type: tpu.TpuType, memory_only: bool = False
) -> dict[str, Any]:
    """Compiles HLO in a separate process; see `tpu_compiler.compile_step`."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.hlo")
        with open(path, "wb") as stream:
            stream.write(hlo)
        command = [
            sys.executable,
            "-m",
            "trainer.planning.tpu_compiler",
            path,
            tpu_type.name,
            *(["memory"] if memory_only else []),
        ]
        # TensorFlow sets this for its children, to the libtpu of another environment.
        environment = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"}
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, check=False
        )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["nothing"])[-1]
        remedy = "It must understand the step"
        if "ModuleNotFoundError" in process.stderr:
            remedy = "Install it by `pip install -e '.[plan]'`"
        elif process.returncode == -signal.SIGKILL:
            remedy = "It was killed: use a machine with more memory"
        raise UserError(
            f"The TPU's compiler stopped with exit code {process.returncode} and "
            f"reported: {last}. {remedy}."
        )
    return json.loads(process.stdout.strip().splitlines()[-1])


def all_reduce_over(num_replicas: int) -> Callable[[Any], Any]:
    """Returns `strategy.all_reduce_sum` as it is on a TPU of `num_replicas`."""

    def add_up(value: tf.Tensor) -> tf.Tensor:
        groups = tf.constant([list(range(num_replicas))], tf.int32)
        return gen_xla_ops.xla_all_reduce(
            value, groups, reduce_op="Add", mode="CrossReplica"
        )

    return lambda values: tf.nest.map_structure(add_up, values)
