"""Builds the strategy for the hardware: only this module names TPU, GPU or CPU ones.

Everything else sees a `tf.distribute.Strategy` and is the same on all of them.
"""

import contextlib
import dataclasses
import functools
import json
import os
from typing import Any

import tensorflow as tf
from absl import logging

from configs import tpu
from configs.errors import UserError
from configs.schema import TrainingConfig
from tfrecords.tensorflow_errors import root_cause
from trainer.runtime import cloud_metadata, tpu_system


@dataclasses.dataclass(frozen=True)
class DetectedHardware:
    """The hardware of a strategy.

    Attributes:
      kind: "TPU", "GPU" or "CPU".
      num_replicas: replicas in sync.
      tpu_type: None without a TPU, or where its type is not known.
    """

    kind: str
    num_replicas: int
    tpu_type: tpu.TpuType | None = None

    @property
    def name(self) -> str:
        """The TPU's type, such as "v3-8"; or "CPU x 2"."""
        if self.tpu_type:
            return self.tpu_type.name
        return f"{self.kind} x {self.num_replicas}"

    @property
    def peak_flops(self) -> float | None:
        """Published bfloat16 FLOP/s of all replicas; None: not known."""
        if not self.tpu_type:
            return None
        return self.tpu_type.facts.peak_flops * self.num_replicas


def create(name: str, num_virtual_devices: int) -> tf.distribute.Strategy:
    """Returns the strategy for the requested or detected hardware, and logs which.

    Args:
      name: of the TPU, "none", or "" to detect what this machine has; as `--tpu`.
      num_virtual_devices: CPU devices to use instead; 0: none.

    Raises:
      UserError: the TPU cannot be reached, or TF_CONFIG is not understood.
    """
    # Its warnings are about Keras callbacks that take longer than a step: ours do.
    tf.get_logger().setLevel("ERROR")
    if not name and not num_virtual_devices and tpu_system.has_device():
        name = "local"
    if name not in ("", "none"):
        strategy = _tpu(name)
    elif os.environ.get("TF_CONFIG"):
        strategy = _several_machines(num_virtual_devices)
    elif gpus := ([] if num_virtual_devices else tf.config.list_logical_devices("GPU")):
        strategy = tf.distribute.MirroredStrategy([g.name for g in gpus])
    else:
        strategy = _cpu(num_virtual_devices or 1)
    logging.info("running on %s", detect_hardware(strategy).name)
    return strategy


def detect_hardware(strategy: tf.distribute.Strategy) -> DetectedHardware:
    """Returns the hardware that a strategy runs on.

    Replicas are counted. A TPU's type comes from the environment or the metadata server
    of this machine.

    Raises:
      UserError: the TPU has more replicas than the strategy.
    """
    num_replicas = strategy.num_replicas_in_sync
    if not compiles_everything(strategy):
        gpu = any("GPU" in device for device in strategy.extended.worker_devices)
        return DetectedHardware("GPU" if gpu else "CPU", num_replicas)
    name = ""
    # On other machines, this would be about another TPU than the remote one.
    if tpu_system.has_device() or _is_local(strategy):
        name = os.environ.get("TPU_ACCELERATOR_TYPE") or cloud_metadata.metadata(
            "attributes/accelerator-type"
        )
    return DetectedHardware("TPU", num_replicas, _tpu_type(name, num_replicas))


def _is_local(strategy: tf.distribute.Strategy) -> bool:
    device = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0])
    return device.job == "localhost"


def _tpu_type(name: str, num_replicas: int) -> tpu.TpuType | None:
    """Returns the TPU type of a name, where it has that many replicas."""
    try:
        tpu_type = tpu.parse(name)
    except UserError:
        return None
    if tpu_type.num_replicas == num_replicas:
        return tpu_type
    if tpu_type.num_replicas > num_replicas:
        remedy = "End the program that holds the others."
        if tpu_type.num_hosts > 1:
            remedy = (
                f"`--tpu=local` uses one of its {tpu_type.num_hosts} hosts: give the "
                "TPU's name, `--tpu=NAME`, on its first host (docs/cloud_tpu.md), or "
                "use a TPU of one host."
            )
        raise UserError(
            f"A run must use all {tpu_type.num_replicas} replicas of this machine's "
            f"{name}. Received: {num_replicas}. {remedy} To use a part on purpose, set "
            "TPU_ACCELERATOR_TYPE to the part's type."
        )
    logging.warning("the machine reports a %s, but has %d replicas", name, num_replicas)
    return None


def compiles_everything(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether XLA compiles everything that the strategy runs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def is_cpu(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the replicas are CPU devices, for which XLA can compile."""
    if compiles_everything(strategy) or detect_hardware(strategy).kind != "CPU":
        return False
    return compiles_on_host()


def compiles_local_work(strategy: tf.distribute.Strategy, precision: str) -> bool:
    """Returns whether XLA is to compile each replica's own work.

    A TPU compiles the whole step anyway. On a CPU an architecture without a layout for
    it, see `Options.on_cpu`, is several times faster compiled; but XLA has no fast
    bfloat16 product there, and oneDNN has one.
    """
    if compiles_everything(strategy):
        return False
    if detect_hardware(strategy).kind == "GPU":
        return True
    return precision == "float32" and compiles_on_host()


def compiles_update(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether XLA is to compile each replica's update of the variables.

    Uncompiled, the update of GPT-2 small is thousands of small kernels on a GPU. On
    CPU devices MirroredStrategy joins its replicas to assign a variable, which compiled
    code cannot.
    """
    return detect_hardware(strategy).kind == "GPU"


def all_reduce_sum(values: Any) -> Any:
    """Adds up each tensor of a nest over the replicas, inside `strategy.run`."""
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def on_host() -> contextlib.AbstractContextManager:
    """Places tensors and new variables in this machine's memory."""
    return tf.device("CPU:0")


@functools.cache
def compiles_on_host() -> bool:
    """Returns whether XLA compiles for this machine's CPU; `tensorflow-tpu` cannot."""

    @tf.function(jit_compile=True, autograph=False)
    def increment(value: tf.Tensor) -> tf.Tensor:
        return value + 1

    try:
        with on_host():
            increment(tf.constant(0))
    except tf.errors.NotFoundError:
        logging.warning(
            "this TensorFlow has no compiler for the CPU: what runs there is not "
            "compiled, and slower"
        )
        return False
    return True


def hbm_bytes_in_use(strategy: tf.distribute.Strategy) -> int | None:
    """Returns the used bytes of a replica's memory; None where that is not known."""
    device = strategy.extended.worker_devices[0]
    if tf.DeviceSpec.from_string(device).device_type == "CPU":
        return None  # sometimes the host's memory is reported
    try:
        return tf.config.experimental.get_memory_info(device)["current"]
    except (ValueError, tf.errors.OpError):
        return None


def accumulation_steps(config: TrainingConfig, num_replicas: int) -> int:
    """Returns global_batch_size / (microbatch_size x num_replicas).

    Raises:
      UserError: it is not a whole number.
    """
    at_once = config.microbatch_size * num_replicas
    if config.global_batch_size % at_once:
        nearest = max(config.global_batch_size // at_once, 1) * at_once
        raise UserError(
            "`training.global_batch_size` must be a multiple of microbatch_size x "
            f"num_replicas ({config.microbatch_size} x {num_replicas}). Received: "
            f"{config.global_batch_size}. Use {nearest} or {nearest + at_once}, or "
            "another `training.microbatch_size`."
        )
    return config.global_batch_size // at_once


def _tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tpu_system.initialize(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        if name == "local" and (holder := tpu_system.process_with_libtpu()):
            raise UserError(
                "The TPU of this machine must be free. It is already in use by process "
                f"{holder}. End that, or set `--tpu=none` to use the CPU."
            ) from error
        raise UserError(
            "`--tpu`, or TPU_NAME of the environment, "
            f"must name a TPU that can be reached. Received: {name!r}. "
            f"Connecting failed: {root_cause(error)}\nUse "
            "`--tpu=none` to train on this machine's CPU or GPUs."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _several_machines(num_virtual_devices: int) -> tf.distribute.Strategy:
    text = os.environ["TF_CONFIG"]
    try:
        settings = json.loads(text)
        workers, task = settings["cluster"]["worker"], settings["task"]
        is_valid = (
            list(settings["cluster"]) == ["worker"]
            and task["type"] == "worker"
            and task["index"] in range(len(workers))
            and not num_virtual_devices
        )
    except (ValueError, TypeError, KeyError):
        is_valid = False
    if not is_valid:
        raise UserError(
            'The environment\'s TF_CONFIG must be {"cluster": {"worker": '
            '["HOST:PORT", …]}, "task": {"type": "worker", "index": N}} with '
            "the index N of this machine; it excludes `--num_virtual_devices`. "
            f"Received: {text}. Correct it, or unset it to train on this machine alone."
        )
    logging.info("waiting for the machines %s", ", ".join(workers))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.UnknownError, tf.errors.InvalidArgumentError) as error:
        raise UserError(
            f"{workers[task['index']]} of TF_CONFIG must be an address of this machine "
            f"with a free port. TensorFlow reports: {root_cause(error)}"
        ) from error


def machines(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns the number of machines that run this program, and this one's index.

    The hosts of a TPU pod count as one: one program drives them all.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return 1, 0
    resolver = strategy.cluster_resolver
    return resolver.cluster_spec().num_tasks("worker"), resolver.task_id


def _cpu(num_devices: int) -> tf.distribute.Strategy:
    if num_devices > 1:
        configurations = [tf.config.LogicalDeviceConfiguration()] * num_devices
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, configurations)
    return mirror_cpu(num_devices)


def mirror_cpu(num_devices: int) -> tf.distribute.Strategy:
    """Returns a strategy over the first `num_devices` CPU devices of TensorFlow."""
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{index}" for index in range(num_devices)],
        # Adds up in a fixed order. Collectives would allow one group size a process.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
