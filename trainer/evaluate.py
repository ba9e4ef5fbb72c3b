"""Perplexity of a trained model: `python -m trainer.evaluate --workdir=… --data_dir=…`.

Every record of the split is scored, from float32 losses summed over all tokens.
"""

import json
import math

from absl import flags

from configs import cli
from tfrecords import manifest as manifests
from tfrecords import reader
from trainer import forward, model, pretrained
from trainer import strategy as strategies
from trainer.scoring import Score, Scorer
from trainer.task import LanguageModelTask

FLAGS = flags.FLAGS


def figures(score: Score, split: manifests.Split) -> dict[str, float]:
    """Returns loss and perplexities of a scored split.

    The first token of each record has no context and bears no loss; per word and per
    byte, it counts as much as the others do on average. So do truncated tokens.
    """
    nats = score.loss * (split.tokens + split.truncated_tokens)
    return {
        "tokens": split.tokens,
        "tokens_scored": score.num_tokens,
        "words": split.words,
        "bytes": split.bytes,
        "loss": score.loss,
        "token_perplexity": score.perplexity,
        "word_perplexity": math.exp(min(nats / split.words, 700.0)),
        "bits_per_byte": nats / split.bytes / math.log(2),
    }


def evaluate() -> dict[str, float | str]:
    """Loads what the flags name and scores it."""
    strategies.check_folder("data_dir", FLAGS.data_dir)
    manifest = manifests.load(FLAGS.data_dir)
    split = manifest.split(FLAGS.split)
    manifests.verify_shards(FLAGS.data_dir, manifest, FLAGS.split)

    strategy = strategies.from_flags()
    with strategy.scope():
        trained = pretrained.from_flags()
        model.check_tokenizer(trained.tokenizer, manifest)
        model.check_fits(trained.gpt2, manifest)
        compiled = strategies.compiles_local_work(strategy, trained.precision)
        task = LanguageModelTask(
            trained.gpt2,
            options=forward.Options(
                trained.precision, compiled=strategies.compiles_everything(strategy)
            ),
            compile_local=compiled,
        )
    scorer = Scorer(
        task,
        strategy,
        data_dir=FLAGS.data_dir,
        manifest=manifest,
        split=FLAGS.split,
        batch_size=FLAGS.batch_size,
    )
    with reader.naming_damage(FLAGS.data_dir, manifest):
        score = scorer()
    return {
        "split": FLAGS.split,
        **figures(score, split),
        "sequence_length": manifest.sequence_length,
        "mode": manifest.mode,
        "precision": trained.precision,
        "dataset": manifest.fingerprint[:16],
    }


def define_flags() -> None:
    pretrained.define_flags()
    strategies.define_flags()
    flags.DEFINE_string("data_dir", "", "folder of the dataset")
    flags.DEFINE_string("split", "validation", "split to score")
    flags.DEFINE_integer(
        "batch_size", 8, "records that a device scores at once", lower_bound=1
    )


def main() -> None:
    result = evaluate()
    if FLAGS.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        text = f"{value:,.4f}" if isinstance(value, float) else value
        text = f"{text:,}" if isinstance(text, int) else text
        print(f"{name.replace('_', ' '):20}{text:>18}")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
