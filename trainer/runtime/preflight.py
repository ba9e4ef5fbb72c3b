"""Checks that the hardware computes, before anything depends on it."""

import platform
from importlib import metadata
from typing import Any

import tensorflow as tf

from configs.errors import UserError
from trainer.runtime import strategy as strategies

_PACKAGES = (
    "tensorflow",
    "tensorflow-tpu",
    "libtpu",
    "tf-keras",
    "transformers",
    "jax",
)


def examine(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Returns versions, devices and hardware, after every replica has computed.

    Raises:
      UserError: the replicas cannot compute, or their sum is wrong.
    """
    hardware = strategies.detect_hardware(strategy)
    expected = 128.0 * hardware.num_replicas
    try:
        total = _sum_of_products(strategy)
    except tf.errors.OpError as error:
        raise UserError(
            f"The replicas of {hardware.name} must compute a product and add it up. "
            f"TensorFlow reports: {str(error.message).strip().splitlines()[0]}"
        ) from error
    if total != expected:
        raise UserError(
            f"{hardware.num_replicas} replicas must add up their products to "
            f"{expected:g}. Received: {total}. This hardware computes wrongly: restart "
            "it or use another."
        )
    facts = hardware.tpu_type.facts if hardware.tpu_type else None
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "hardware": hardware.name,
        "num_replicas": hardware.num_replicas,
        "hbm_available_bytes": facts.hbm_bytes if facts else None,
        "replicas_compute": True,
        "proved": _proof(hardware),
    }


def _proof(hardware: strategies.DetectedHardware) -> str:
    """Returns what the computation has shown; the list of devices shows less."""
    proof = (
        f"{hardware.num_replicas} {hardware.kind} replicas multiplied matrices and "
        "added the products up"
    )
    if hardware.kind != "TPU" and tf.config.list_logical_devices("TPU_SYSTEM"):
        proof += (
            ". Nothing about a TPU: TPU_SYSTEM among the devices only shows that "
            "tensorflow-tpu is installed"
        )
    return proof


def _sum_of_products(strategy: tf.distribute.Strategy) -> float:
    """Multiplies bfloat16 matrices of ones, and adds up a corner of all replicas'."""

    @tf.function
    def compute(matrix: tf.Tensor) -> tf.Tensor:
        def product() -> tf.Tensor:
            corner = tf.matmul(matrix, matrix)[0, 0]
            return strategies.all_reduce_sum(tf.cast(corner, tf.float32))

        return strategy.experimental_local_results(strategy.run(product))[0]

    return float(compute(tf.ones([128, 128], tf.bfloat16)))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
