"""Evaluates a trained model by a standard benchmark."""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from transformers import PreTrainedTokenizerFast

from configs.errors import UserError
from tfrecords import encoding, fingerprints
from trainer.checkpoints.pretrained import Pretrained
from trainer.evaluation import published
from trainer.evaluation.benchmarks import row_scores
from trainer.evaluation.benchmarks.catalog import BENCHMARKS, Benchmark
from trainer.evaluation.benchmarks.example_files import Example
from trainer.evaluation.benchmarks.rows import RowMaker, Score
from trainer.evaluation.evaluator import check_finite
from trainer.models import create


def evaluate(
    trained: Pretrained,
    strategy: tf.distribute.Strategy,
    name: str,
    examples: Sequence[Example],
    *,
    source: str = "",
    precision: str = "",
    batch_size: int = 8,
) -> dict[str, Any]:
    """Scores the examples of a benchmark; returns a result as `evaluator.evaluate`.

    Args:
      trained: the model, built under `strategy`.
      strategy: that scores.
      name: of the benchmark.
      examples: from `catalog.load`.
      source: the file that they are from; empty: TFDS.
      precision: of the matrix products; empty: that of the training.
      batch_size: records that a replica scores at once.

    Raises:
      UserError: the model does not predict the next token, or has no tokenizer.
      DataError: an example does not fit, or a score is not finite.
    """
    if trained.task != "causal_lm":
        raise UserError(
            "`--benchmark` needs a model that predicts the next token, of "
            f"training.task=causal_lm. Received: {trained.task}."
        )
    benchmark = BENCHMARKS[name]
    precision = precision or trained.precision
    tokenizer = create.load_tokenizer(
        trained.architecture, trained.tokenizer, trained.model
    )
    by_example = _score(
        trained, strategy, benchmark, examples, tokenizer, precision, batch_size
    )
    nats = sum(score.total for part in by_example for score in part)
    check_finite({"log_likelihood": nats}, trained.name)
    result: dict[str, Any] = {
        "model": trained.name,
        "step": trained.step,
        "examples": len(examples),
        **benchmark.figures(examples, by_example),
        "protocol": {
            "benchmark": name,
            "split": os.path.basename(source) or f"tfds:{benchmark.tfds}",
            "dataset": _digest(examples),
            "tokenizer": fingerprints.of_tokenizer_json(
                tokenizer.backend_tokenizer.to_str()
            )[:16],
            **benchmark.describe(examples),
            "context_length": trained.model.config.n_positions,
            "precision": precision,
            **trained.protocol,
        },
    }
    studies = published.compare(result, trained.published_name, trained.origin)
    return {**result, "published": studies}


def _score(
    trained: Pretrained,
    strategy: tf.distribute.Strategy,
    benchmark: Benchmark,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerFast,
    precision: str,
    batch_size: int,
) -> list[list[Score]]:
    """Returns the scores of each example's rows; see `evaluate`."""
    encode = encoding.encoder(
        tokenizer.backend_tokenizer.to_str(), allow_special_tokens=True
    )
    maker = RowMaker(
        lambda text: encode([text])[0],
        tokenizer.eos_token_id,
        trained.model.config.n_positions,
    )
    rows = [benchmark.rows(example, maker) for example in examples]
    scores = iter(
        row_scores.score(
            trained,
            strategy,
            list(itertools.chain(*rows)),
            precision=precision,
            batch_size=batch_size,
            end_of_text_id=tokenizer.eos_token_id,
        )
    )
    return [list(itertools.islice(scores, len(part))) for part in rows]


def _digest(examples: Sequence[Example]) -> str:
    values = json.dumps(list(examples)).encode()
    return hashlib.sha256(values).hexdigest()[:16]
