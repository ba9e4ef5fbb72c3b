"""Checks this machine's hardware without training: `python -m trainer.doctor`.

Prints versions, devices and the TPU's type, runs a computation on every replica, and
compares the hardware with what a config expects.
"""

from absl import flags

from configs import cli
from configs.validation import validate

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_config()
    cli.define_hardware()


def main() -> None:
    """Runs the program."""
    validate(FLAGS.config)
    cli.check_hardware(FLAGS.tpu, FLAGS.num_virtual_devices)

    from trainer.planning import hardware
    from trainer.runtime import preflight
    from trainer.runtime import strategy as strategies

    strategy = strategies.create(cli.tpu_name(), FLAGS.num_virtual_devices)
    cli.print_result(preflight.examine(strategy), as_json=FLAGS.json)
    hardware.check(FLAGS.config, strategies.detect_hardware(strategy))


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
