"""Predicts the labels of texts: `python -m trainer.predict --workdir=… --text=…`.

Prints the label of each text, and the probabilities of all labels.
"""

from collections.abc import Sequence

from absl import flags, logging

from configs import cli
from configs.errors import UserError
from tfrecords.storage import text_lines

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    flags.DEFINE_multi_string("text", [], "text to classify; can be repeated")
    cli.define_path("text_file", "file with a text on each line; -: standard input")
    flags.DEFINE_integer(
        "batch_size", 32, "texts that are classified at once", lower_bound=1
    )


def read_texts(texts: Sequence[str], path: str) -> list[str]:
    """Returns the texts of `--text` or of `--text_file`.

    Raises:
      UserError: none or both are given; the file cannot be read; or a text is blank.
    """
    if bool(texts) == bool(path):
        raise UserError("Give either `--text` or `--text_file`.")
    text_lines.check_arguments("text", texts)
    texts = text_lines.read("text_file", path) if path else list(texts)
    for number, text in enumerate(texts, 1):
        if not text.strip():
            raise UserError(
                f"Each text must hold a word. Received: nothing in {path or '--text'}, "
                f"{'line' if path else 'text'} {number} of {len(texts)}. Leave it out."
            )
    return texts


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    texts = read_texts(FLAGS.text, FLAGS.text_file)

    from trainer.checkpoints import pretrained
    from trainer.evaluation.predicting import Predictor

    trained = pretrained.load(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    predictor = Predictor(trained, batch_size=FLAGS.batch_size)
    results = predictor(texts)
    if num_long := sum(result["truncated_tokens"] > 0 for result in results):
        logging.warning(
            "%d of %d texts are longer than the %d tokens that the model was trained "
            "on: what follows them is not read",
            *(num_long, len(texts), predictor.max_tokens),
        )
    pairs = zip(texts, results, strict=True)
    if FLAGS.json:
        values = [{"text": text, **result} for text, result in pairs]
        result = {"labels": list(predictor.labels), "results": values}
        cli.print_result(result, as_json=True)
        return
    head = ["text", "label", *predictor.labels]
    rows = [
        [_short(text), result["label"], *result["probabilities"].values()]
        for text, result in pairs
    ]
    cli.print_result({}, as_json=False, rows=[head, *rows])


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
