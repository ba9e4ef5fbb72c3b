"""Finds the hardware: the only file that makes strategies for TPU, GPU or CPU.

Everything else sees a `tf.distribute.Strategy` and is the same on all of them.
"""

import contextlib
import dataclasses
import json
import os
from typing import Any

import tensorflow as tf
from absl import flags, logging

from configs import tpu
from configs.errors import UserError
from configs.schema import TrainingConfig
from tfrecords.tensorflow_errors import root_cause
from trainer.runtime import cloud_metadata

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Found:
    """The hardware of a strategy: "TPU", "GPU" or "CPU".

    `tpu_type` is None where there is no TPU, or where it does not tell.
    """

    kind: str
    num_replicas: int
    tpu_type: tpu.TpuType | None = None

    @property
    def name(self) -> str:
        if self.tpu_type:
            return self.tpu_type.name
        return f"{self.kind} x {self.num_replicas}"

    @property
    def peak_flops(self) -> float | None:
        """Of all replicas, bfloat16 FLOP/s as published; None: not known."""
        if not self.tpu_type:
            return None
        return self.tpu_type.facts.peak_flops * self.num_replicas


def define_flags() -> None:
    flags.DEFINE_string(
        "tpu",
        "",
        "local (this machine is a TPU VM), a name, grpc://HOST:PORT, or none; empty: "
        "what is there",
    )
    flags.DEFINE_integer(
        "num_virtual_devices", 0, "split the CPU into so many devices", lower_bound=0
    )


def from_flags() -> tf.distribute.Strategy:
    """Returns the strategy for the hardware asked for, or found, and logs which.

    Raises:
      UserError: the TPU cannot be reached, or two kinds were asked for.
    """
    name, num_virtual_devices = FLAGS.tpu, FLAGS.num_virtual_devices
    # Its warnings are about Keras callbacks that take longer than a step: ours do.
    tf.get_logger().setLevel("ERROR")
    if name not in ("", "none") and num_virtual_devices:
        raise UserError(
            "`--tpu` and `--num_virtual_devices` exclude each other. Received: "
            f"{name!r} and {num_virtual_devices}."
        )
    if not name and not num_virtual_devices and _is_tpu_machine():
        name = "local"
    if name not in ("", "none"):
        strategy = _tpu(name)
    elif os.environ.get("TF_CONFIG"):
        strategy = _several_machines(num_virtual_devices)
    elif gpus := ([] if num_virtual_devices else tf.config.list_logical_devices("GPU")):
        strategy = tf.distribute.MirroredStrategy([g.name for g in gpus])
    else:
        strategy = _cpu(num_virtual_devices or 1)
    logging.info("running on %s", find(strategy).name)
    return strategy


def find(strategy: tf.distribute.Strategy) -> Found:
    """Tells what hardware a strategy runs on.

    The replicas are counted; a TPU's generation is what its machine says of itself, in
    the environment or the metadata server.
    """
    replicas = strategy.num_replicas_in_sync
    if not compiles_everything(strategy):
        gpu = any("GPU" in device for device in strategy.extended.worker_devices)
        return Found("GPU" if gpu else "CPU", replicas)
    said = ""
    if _has_tpu_device():  # otherwise it would tell of itself, not of a remote TPU
        said = os.environ.get("TPU_ACCELERATOR_TYPE") or cloud_metadata.metadata(
            "attributes/accelerator-type"
        )
    return Found("TPU", replicas, _tpu_type(said, replicas))


def _tpu_type(said: str, num_replicas: int) -> tpu.TpuType | None:
    """Returns the type that a machine says it has, where its replicas agree."""
    try:
        tpu_type = tpu.parse(said)
    except UserError:
        return None
    if tpu_type.num_replicas == num_replicas:
        return tpu_type
    logging.warning("the machine says %s, but has %d replicas", said, num_replicas)
    return None


def compiles_everything(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether XLA compiles whatever the strategy runs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def compiles_local_work(strategy: tf.distribute.Strategy, precision: str) -> bool:
    """Tells whether each replica's own work is to be compiled by XLA.

    A TPU compiles the whole step anyway. On a CPU a compiled loop is several times
    faster, but XLA has no fast bfloat16 product there, where oneDNN has one.
    """
    if compiles_everything(strategy):
        return False
    return find(strategy).kind == "GPU" or precision == "float32"


def all_reduce_sum(values: Any) -> Any:
    """Adds up each tensor of a nest over the replicas, inside `strategy.run`."""
    replica = tf.distribute.get_replica_context()
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, values)


def counted(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Says that nobody reads to the end, since all know the number of batches.

    Several machines would otherwise agree before each batch whether there is one, and
    lose its static shape. To read on is an error.
    """
    endless = tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    return batches.apply(endless)


def on_host() -> contextlib.AbstractContextManager:
    """Inside, tensors and new variables are in the memory of this machine."""
    return tf.device("CPU:0")


def hbm_bytes_in_use(strategy: tf.distribute.Strategy) -> int | None:
    """Returns what is in use of a replica's memory; None where it does not tell."""
    device = strategy.extended.worker_devices[0]
    if tf.DeviceSpec.from_string(device).device_type == "CPU":
        return None  # which now and then tells of the host's
    try:
        return tf.config.experimental.get_memory_info(device)["current"]
    except (ValueError, tf.errors.OpError):
        return None


def check_folder(flag: str, path: str) -> None:
    """Checks a folder given by a flag: there is one, and the hardware can reach it.

    Raises:
      UserError: it is missing, or local where another machine does the reading.
    """
    if not path:
        raise UserError(f"`--{flag}` is missing: a folder, or gs://….")
    if FLAGS.tpu not in ("", "none", "local") and not path.startswith("gs://"):
        raise UserError(
            f"`--{flag}` must be gs://… with a remote TPU, whose own machine reads and "
            f"writes it. Received: {path}."
        )


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


def _is_tpu_machine() -> bool:
    """True on a Cloud TPU VM and in Colab's TPU runtime."""
    return _has_tpu_device() or "TPU_NAME" in os.environ


def _has_tpu_device() -> bool:
    # Up to v4, and from v5e on.
    return any(map(os.path.exists, ("/dev/accel0", "/dev/vfio/0")))


def _tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UserError(
            f"`--tpu` must name a TPU that can be reached. Received: {name!r}. "
            f"Connecting said: {root_cause(error)}\nUse "
            "`--tpu=none` to train on this machine's CPU or GPUs."
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def _several_machines(num_virtual_devices: int) -> tf.distribute.Strategy:
    text = os.environ["TF_CONFIG"]
    try:
        told = json.loads(text)
        workers, task = told["cluster"]["worker"], told["task"]
        understood = (
            list(told["cluster"]) == ["worker"]
            and task["type"] == "worker"
            and task["index"] in range(len(workers))
            and not num_virtual_devices
        )
    except (ValueError, TypeError, KeyError):
        understood = False
    if not understood:
        raise UserError(
            'The environment\'s TF_CONFIG must be {"cluster": {"worker": '
            '["HOST:PORT", …]}, "task": {"type": "worker", "index": N}} with '
            "the N of this machine, and excludes `--num_virtual_devices`. Received: "
            f"{text}. Correct it, or unset it to train on this machine alone."
        )
    logging.info("waiting for all of %s", ", ".join(workers))
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.UnknownError, tf.errors.InvalidArgumentError) as error:
        raise UserError(
            f"{workers[task['index']]} of TF_CONFIG must be an address of this machine "
            f"with a free port. TensorFlow said: {root_cause(error)}"
        ) from error


def machines(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """Returns how many machines run a program of this strategy, and this one's index.

    The hosts of a TPU pod count as one: they are driven by one program.
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
    """Returns a strategy over so many of the CPU devices that TensorFlow has."""
    return tf.distribute.MirroredStrategy(
        [f"/cpu:{index}" for index in range(num_devices)],
        # Adds up in a fixed order; collectives also allow one group size a process.
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )
