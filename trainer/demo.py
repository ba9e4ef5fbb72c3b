"""Shows a page that continues prompts: `python -m trainer.demo --workdir=…`."""

import sys

from absl import flags, logging

from configs import cli
from trainer.generation import web_page

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    flags.DEFINE_integer(
        "port",
        7860,
        "of 127.0.0.1, where the page is; 0: any that is free",
        lower_bound=0,
        upper_bound=65535,
    )


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    server = web_page.Server(FLAGS.port)

    from trainer.generation import trained

    create_sampler = trained.load(
        *(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint), program="trainer.demo"
    )
    cli.print_result({"page": server.url}, as_json=FLAGS.json)
    sys.stdout.flush()
    logging.info("open the page in a browser; Ctrl-C ends it")
    server.serve(create_sampler, FLAGS.workdir or FLAGS.checkpoint)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
