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
from configs.errors import DataError, UserError
from tfrecords import manifest as manifests
from tfrecords import reader, verify
from tfrecords.windows import Windows
from trainer.checkpoints import pretrained
from trainer.evaluation import published
from trainer.evaluation.scoring import Scorer
from trainer.models import create
from trainer.models.architecture import Options
from trainer.run_dir import results
from trainer.runtime import preemption
from trainer.runtime import strategy as strategies
from trainer.tasks import registry as tasks
from trainer.tasks.step import TrainingStep

FLAGS = flags.FLAGS


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
    verify.verify_shards(FLAGS.data_dir, manifest, FLAGS.split)

    strategy = strategies.from_flags()
    with strategy.scope():
        trained = pretrained.from_flags()
        create.check_tokenizer(trained.architecture, trained.tokenizer, manifest)
        create.check_vocabulary(trained.model, manifest)
        lengths = _context_lengths(manifest, trained.model.config.n_positions)
        precision = FLAGS.precision or trained.precision
        training_step = TrainingStep(
            trained.model,
            trained.architecture,
            tasks.get(trained.task),
            options=Options(
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
    scorers = [_scorer(training_step, strategy, manifest, stamp) for stamp in stamps]
    found = []
    for stamp, scorer in zip(stamps, scorers, strict=True):
        with reader.translate_data_loss_errors(FLAGS.data_dir, manifest):
            sums = scorer()
        _check_finite(sums, trained.name)
        result: dict[str, Any] = {
            "model": trained.name,
            "step": trained.step,
            **training_step.task.split_figures(sums, split),
            "protocol": stamp,
        }
        result["published"] = []
        if "token_perplexity" in result:
            result["published"] = published.compare(
                result, trained.published_name, trained.origin
            )
        found.append(result)
        if FLAGS.workdir:
            results.save(FLAGS.workdir, result)
    return found


def _check_finite(sums: dict[str, float], name: str) -> None:
    if not all(map(math.isfinite, sums.values())):
        raise DataError(
            f"The loss of {name} must be finite. Received: {sums}. Its "
            "weights are finite, but so large that the network overflows: its training "
            "has diverged. Evaluate an earlier `--step`, or another checkpoint."
        )


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
    training_step: TrainingStep,
    strategy: tf.distribute.Strategy,
    manifest: manifests.Manifest,
    stamp: dict[str, Any],
) -> Scorer:
    cut = {name: stamp[name] for name in ("split", "context_length", "stride")}
    windows = Windows(FLAGS.data_dir, manifest, **cut)
    return Scorer(training_step, strategy, windows, batch_size=FLAGS.batch_size)


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
        shown = found[0] if len(found) == 1 else {"results": found}
        print(json.dumps(shown, allow_nan=False))
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
