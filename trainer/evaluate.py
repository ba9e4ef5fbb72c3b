"""Perplexity of a trained model: `python -m trainer.evaluate --workdir=… --data_dir=…`.

Every token of the split is scored once, with a context of `--context_length` tokens
that moves on by `--stride`, from float32 losses summed over all of them. Each result
has its protocol with it, and one of a run is kept in `WORKDIR/evaluations/`.
"""

import json
import math
from typing import Any

import tensorflow as tf
from absl import flags

from configs import cli
from configs.errors import UserError
from tfrecords import manifest as manifests
from tfrecords import reader
from tfrecords.windows import Windows
from trainer.checkpoints import pretrained
from trainer.evaluation import published
from trainer.evaluation.scoring import Score, Scorer
from trainer.models.gpt2 import forward, weights
from trainer.run_dir import results
from trainer.runtime import preemption
from trainer.runtime import strategy as strategies
from trainer.tasks.causal_lm import LanguageModelTask

FLAGS = flags.FLAGS


def figures(score: Score, split: manifests.Split) -> dict[str, float]:
    """Returns loss and perplexities of a scored split.

    The first token of a text has no context and bears no loss; nor does the first of a
    window, where windows do not overlap. Per word and per byte it counts as much as the
    others do on average. So do truncated tokens.
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


def protocol(
    manifest: manifests.Manifest,
    *,
    split: str,
    context_length: int,
    stride: int,
    precision: str,
) -> dict[str, Any]:
    """Returns all that two results must share to be compared."""
    made = manifest.config
    end = made.get("end_token")
    ends = {None: "the tokenizer's end-of-text", "": "nothing"}.get(end, end)
    return {
        "dataset": manifest.fingerprint[:16],
        "tokenizer": manifest.tokenizer_fingerprint[:16],
        "split": split,
        "mode": manifest.mode,
        "detokenizer": made.get("detokenizer", "none"),
        "separators": f"{made.get('start_token') or 'nothing'} before, {ends} after "
        f"each {made.get('document', 'document')}",
        "context_length": context_length,
        "stride": stride,
        "precision": precision,
    }


def evaluate() -> list[dict[str, Any]]:
    """Loads what the flags name, and scores it with each context length."""
    strategies.check_folder("data_dir", FLAGS.data_dir)
    manifest = manifests.load(FLAGS.data_dir)
    split = manifest.split(FLAGS.split)
    manifests.verify_shards(FLAGS.data_dir, manifest, FLAGS.split)

    strategy = strategies.from_flags()
    with strategy.scope():
        trained = pretrained.from_flags()
        weights.check_tokenizer(trained.tokenizer, manifest)
        weights.check_vocabulary(trained.gpt2, manifest)
        lengths = _context_lengths(manifest, trained.gpt2.config.n_positions)
        precision = FLAGS.precision or trained.precision
        task = LanguageModelTask(
            trained.gpt2,
            options=forward.Options(
                precision, compiled=strategies.compiles_everything(strategy)
            ),
            compile_local=strategies.compiles_local_work(strategy, precision),
        )
    stamps = [
        protocol(
            manifest,
            split=FLAGS.split,
            context_length=length,
            stride=FLAGS.stride or length,
            precision=precision,
        )
        for length in lengths
    ]
    # All of them before the first, which takes its time: one may be impossible.
    scorers = [_scorer(task, strategy, manifest, stamp) for stamp in stamps]
    found = []
    for stamp, scorer in zip(stamps, scorers, strict=True):
        with reader.naming_damage(FLAGS.data_dir, manifest):
            score = scorer()
        result: dict[str, Any] = {
            "model": trained.name,
            "step": trained.step,
            **figures(score, split),
            "protocol": stamp,
        }
        result["published"] = published.compare(
            result, trained.published_name, trained.origin
        )
        found.append(result)
        if FLAGS.workdir:
            results.save(FLAGS.workdir, result)
    return found


def _context_lengths(manifest: manifests.Manifest, n_positions: int) -> list[int]:
    given = FLAGS.context_length or [manifest.sequence_length]
    try:
        lengths = [int(text) for text in given]
    except ValueError:
        lengths = []
    if not lengths or not all(2 <= length <= n_positions for length in lengths):
        raise UserError(
            "`--context_length` must be numbers from 2 to the model's positions, "
            f"{n_positions}; left out, it is the dataset's sequence length. Received: "
            f"{','.join(map(str, given))}."
        )
    return lengths


def _scorer(
    task: LanguageModelTask,
    strategy: tf.distribute.Strategy,
    manifest: manifests.Manifest,
    stamp: dict[str, Any],
) -> Scorer:
    cut = {name: stamp[name] for name in ("split", "context_length", "stride")}
    windows = Windows(FLAGS.data_dir, manifest, **cut)
    return Scorer(task, strategy, windows, batch_size=FLAGS.batch_size)


def define_flags() -> None:
    pretrained.define_flags()
    strategies.define_flags()
    flags.DEFINE_string("data_dir", "", "folder of the dataset")
    flags.DEFINE_string("split", "validation", "split to score")
    flags.DEFINE_list(
        "context_length",
        [],
        "tokens of a window, or several such lengths; default: the dataset's records",
    )
    flags.DEFINE_integer(
        "stride",
        0,
        "tokens that each window scores; 0: the context length, so none overlap",
        lower_bound=0,
    )
    flags.DEFINE_enum(
        "precision",
        "",
        ["", "float32", "bfloat16"],
        "of the matrix products; default: as trained, float32 of a --checkpoint",
    )
    flags.DEFINE_integer(
        "batch_size", 8, "windows that a device scores at once", lower_bound=1
    )


def main() -> None:
    with preemption.naming_loss():
        found = evaluate()
    if FLAGS.json:
        print(json.dumps(found[0] if len(found) == 1 else {"results": found}))
        return
    for number, result in enumerate(found):
        if number:
            print()
        _print(result)


def _print(result: dict[str, Any]) -> None:
    for name, value in {**result, **result["protocol"]}.items():
        if name in ("protocol", "published") or value is None:
            continue
        text = f"{value:,.4f}" if isinstance(value, float) else str(value)
        text = f"{value:,}" if isinstance(value, int) else text
        print(f"{name.replace('_', ' '):20}{text:>18}")
    for study in result["published"]:
        values = ", ".join(
            f"{name.replace('_', ' ')} {value:.2f}"
            for name, value in study["figures"].items()
        )
        print(f"published: {study['study']}: {values}")
        differences = "; ".join(study["differences"])
        print(f"  not comparable: {differences}" if differences else "  comparable")
    if not result["published"]:
        print("published: none for this text and checkpoint name (a folder has none)")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
