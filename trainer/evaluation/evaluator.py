"""Evaluates a trained model on a split, with one or several context lengths."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from configs.errors import DataError, UserError
from tfrecords import manifest as manifests
from tfrecords import reader, verify
from tfrecords.windows import Windows
from trainer.checkpoints.pretrained import Pretrained
from trainer.evaluation import bag_of_words, published
from trainer.evaluation.scoring import Scorer, scoring_step
from trainer.models import classifier, create
from trainer.tasks import classification
from trainer.tasks import registry as tasks


def protocol(
    manifest: manifests.Manifest,
    *,
    split: str,
    context_length: int,
    stride: int,
    precision: str,
) -> dict[str, Any]:
    """Returns what two results must share to be comparable."""
    data_config = manifest.config
    end = data_config.get("end_token")
    end = {None: "the tokenizer's end-of-text", "": "nothing"}.get(end, end)
    start = manifest.start_token or "nothing"
    document = data_config.get("document", "document")
    return {
        "dataset": manifest.fingerprint[:16],
        "tokenizer": manifest.tokenizer_fingerprint[:16],
        "split": split,
        "mode": manifest.mode,
        "detokenizer": data_config.get("detokenizer", "none"),
        "separators": f"{start} before, {end} after each {document}",
        "context_length": context_length,
        "stride": stride,
        "precision": precision,
    }


def evaluate(
    trained: Pretrained,
    strategy: tf.distribute.Strategy,
    data_dir: str,
    *,
    split: str,
    context_lengths: Sequence[int] = (),
    stride: int = 0,
    precision: str = "",
    batch_size: int = 8,
) -> Iterator[dict[str, Any]]:
    """Scores a split of a dataset; yields the result of each context length.

    Args:
      trained: the model, built under `strategy`.
      strategy: that scores.
      data_dir: folder of the dataset.
      split: to score.
      context_lengths: tokens of a window, for each result; empty: the dataset's
        sequence length.
      stride: tokens that each window scores; 0: the context length.
      precision: of the matrix products; empty: that of the training.
      batch_size: windows that a replica scores at once.

    Raises:
      UserError: model and dataset do not fit, or a length exceeds the positions.
      DataError: the loss is not finite.
    """
    manifest = manifests.load(data_dir)
    verify.verify_files(data_dir, manifest)
    verify.verify_shards(data_dir, manifest, split)
    labels = classifier.labels_of(trained.model.config)
    lengths = context_lengths or [manifest.sequence_length]
    _check_fit(trained, manifest, split, labels, lengths, stride)
    precision = precision or trained.precision
    stamps = [
        protocol(
            manifest,
            split=split,
            context_length=length,
            stride=stride or length,
            precision=precision,
        )
        | trained.protocol
        for length in lengths
    ]
    task = tasks.get(trained.task)
    step = scoring_step(trained, strategy, precision, task, manifest.end_of_text_id)
    # All scorers before the first runs for long: a later one may be impossible.
    scorers = []
    for stamp in stamps:
        cut = {name: stamp[name] for name in ("split", "context_length", "stride")}
        windows = Windows(data_dir, manifest, **cut, labels=labels)
        scorers.append(Scorer(step, strategy, windows, batch_size=batch_size))
    for stamp, scorer in zip(stamps, scorers, strict=True):
        with reader.translate_data_loss_errors(data_dir, manifest):
            sums = scorer()
        check_finite(sums, trained.name)
        figures = step.task.split_figures(sums, manifest.split(split))
        if labels:
            baselines = bag_of_words.baselines(data_dir, manifest, split, labels)
            figures |= {"labels": list(labels), **baselines}
        yield _result(trained, figures, stamp)


def _result(
    trained: Pretrained, figures: dict[str, Any], stamp: dict[str, Any]
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": trained.name,
        "step": trained.step,
        **figures,
        "protocol": stamp,
        "published": [],
    }
    if "token_perplexity" in figures:
        result["published"] = published.compare(
            result, trained.published_name, trained.origin
        )
    return result


def check_finite(sums: dict[str, Any], name: str) -> None:
    """Raises DataError where a sum over a model's scores is not finite."""
    if not all(np.isfinite(value).all() for value in sums.values()):
        received = ", ".join(f"{key} {value}" for key, value in sums.items())
        raise DataError(
            f"The loss of {name} must be finite. Received: {received}. Its "
            "weights are finite, but so large that the network overflows: its training "
            "has diverged. Evaluate an earlier `--step`, or another checkpoint."
        )


def _check_fit(
    trained: Pretrained,
    manifest: manifests.Manifest,
    split: str,
    labels: Sequence[str],
    lengths: Sequence[int],
    stride: int,
) -> None:
    """Refuses a dataset, context lengths or a stride that the model cannot score."""
    is_same = create.check_tokenizer(trained.architecture, trained.tokenizer, manifest)
    create.check_vocabulary(trained.model, manifest, same_tokenizer=is_same)
    if labels:
        classification.check_data(manifest, labels, ["train", split])
    cuts = {*lengths, stride or manifest.sequence_length} - {manifest.sequence_length}
    if cuts and (labels or manifest.masked):
        raise UserError(
            "Labelled texts and completions are read whole: leave out "
            "`--context_length` and `--stride`. Received: "
            f"{', '.join(map(str, sorted(cuts)))}, of records of "
            f"{manifest.sequence_length}."
        )
    _check_context_lengths(lengths, trained.model.config.n_positions)


def _check_context_lengths(lengths: Sequence[int], num_positions: int) -> None:
    if not all(2 <= length <= num_positions for length in lengths):
        raise UserError(
            "`--context_length` must be numbers from 2 to the model's positions, "
            f"{num_positions}; by default it is the dataset's sequence length. "
            f"Received: {','.join(map(str, lengths))}."
        )
