"""What is there, without training: `python -m trainer.doctor --tpu=local`.

Prints versions, devices and the TPU's type, has every replica compute, and compares the
hardware with what a config expects.
"""

import json
import platform
from importlib import metadata
from typing import Any

import tensorflow as tf
from absl import flags

from configs import cli
from configs.errors import UserError
from configs.validation import validate
from trainer.planning import hardware
from trainer.runtime import strategy as strategies

FLAGS = flags.FLAGS
_PACKAGES = (
    "tensorflow",
    "tensorflow-tpu",
    "libtpu",
    "tf-keras",
    "transformers",
    "jax",
)


def examine(strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """Returns what hardware a strategy has and whether it computes.

    Raises:
      UserError: the replicas' sum is wrong.
    """
    found = strategies.find(strategy)

    @tf.function
    def sum_of_products(matrix: tf.Tensor) -> tf.Tensor:
        def product() -> tf.Tensor:
            corner = tf.matmul(matrix, matrix)[0, 0]
            return strategies.all_reduce_sum(tf.cast(corner, tf.float32))

        return strategy.experimental_local_results(strategy.run(product))[0]

    try:
        total = float(sum_of_products(tf.ones([128, 128], tf.bfloat16)))
    except tf.errors.OpError as error:
        raise UserError(
            f"The replicas of {found.name} must compute a product and add it up. "
            f"TensorFlow said: {str(error.message).strip().splitlines()[0]}"
        ) from error
    if total != 128.0 * found.num_replicas:
        raise UserError(
            f"{found.num_replicas} replicas must add up their products to "
            f"{128 * found.num_replicas}. Received: {total}. This hardware computes "
            "wrongly: restart it or take another."
        )
    facts = found.tpu_type.facts if found.tpu_type else None
    return {
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "hardware": found.name,
        "num_replicas": found.num_replicas,
        "hbm_available_bytes": facts.hbm_bytes if facts else None,
        "replicas_compute": True,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def define_flags() -> None:
    cli.define_config()
    strategies.define_flags()


def main() -> None:
    validate(FLAGS.config)
    strategy = strategies.from_flags()
    result = examine(strategy)
    if FLAGS.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            shown = ", ".join(value) if isinstance(value, list) else value
            print(f"{name.replace('_', ' '):24}{'-' if shown is None else shown}")
    hardware.check(FLAGS.config, strategies.find(strategy))


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
