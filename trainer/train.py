"""Trains a model: `python -m trainer.train --config=… --data_dir=… --workdir=…`.

The same command continues a run that was stopped, and changes nothing of a run that is
finished. Prints a summary and draws loss_curve.png at the end.
"""

import contextlib

from absl import flags

from configs import cli
from configs.validation import validate
from trainer.models import registry as architectures
from trainer.tasks import registry as tasks

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_config()
    cli.define_hardware()
    cli.define_path("data_dir", "folder of the dataset")
    cli.define_path("workdir", "folder of the run")


def main() -> None:
    """Runs the program."""
    config = FLAGS.config
    validate(config)
    cli.check_hardware(FLAGS.tpu, FLAGS.num_virtual_devices)
    cli.check_folder("data_dir", FLAGS.data_dir, cli.tpu_name())
    cli.check_folder("workdir", FLAGS.workdir, cli.tpu_name())
    architectures.check(config.model.architecture)
    tasks.check(config.training.task)

    from tfrecords.storage import lease
    from trainer.run_dir import journal
    from trainer.runtime import cloud_metadata, preemption
    from trainer.runtime import strategy as strategies
    from trainer.runtime.cluster import Cluster
    from trainer.training.loop import train

    for folder in (FLAGS.data_dir, FLAGS.workdir):
        cloud_metadata.warn_of_distance(folder)
    with preemption.translate_unavailable_errors(), contextlib.ExitStack() as held:
        strategy = strategies.create(cli.tpu_name(), FLAGS.num_virtual_devices)
        cluster = Cluster(strategy)
        if cluster.is_chief:
            held.enter_context(lease.only_writer(FLAGS.workdir))
            held.enter_context(journal.record_events(FLAGS.workdir))
        train(config, FLAGS.data_dir, FLAGS.workdir, cluster)
    if cluster.is_chief:
        _print_result(FLAGS.data_dir, FLAGS.workdir)


def _print_result(data_dir: str, workdir: str) -> None:
    from tfrecords import manifest as manifests
    from trainer.run_dir import metrics, summary

    lines = metrics.load(workdir)
    figures = {"mode": manifests.load(data_dir).mode, **summary.table(lines)}
    curve = summary.draw_curve(lines, workdir)
    rows = [(name.replace("_", " "), value) for name, value in figures.items()]
    cli.print_result(figures, as_json=FLAGS.json, rows=[*rows, ("loss curve", curve)])


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
