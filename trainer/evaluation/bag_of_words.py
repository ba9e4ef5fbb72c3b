"""What a classifier must beat: the most frequent label, and a bag of words.

The bag of words is a logistic regression on which words a text has, with the penalty
|w|^2 / 2 beside the summed loss: what scikit-learn's `LogisticRegression` has by
default. It is trained on the dataset's training split, in seconds.

Dimensions: N texts, V words, L labels.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from tfrecords import encoding, schema
from tfrecords.manifest import TOKENIZER_FOLDER, Manifest
from tfrecords.storage import files
from tfrecords.windows import Windows
from trainer.tasks import classification

# Chinese and Japanese do not separate words: each character is one.
_WORD = re.compile("[\u3040-\u30ff\u3400-\u9fff]|[^\\W\u3040-\u30ff\u3400-\u9fff]+")
# Of the training split, whose order is by chance: words times labels.
_MAX_ENTRIES = 4_000_000
_STEPS, _RATE = 400, 0.1  # of Adam, with all texts in each step
_BATCH_TEXTS = 256


class Texts(NamedTuple):
    """Which words each text has: sparse rows, one behind the other.

    Attributes:
      words: int64 [entries], the words of all texts.
      rows: int64 [entries], the text of each entry.
      labels: int64 [N].
    """

    words: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def baselines(
    data_dir: str, manifest: Manifest, split: str, labels: Sequence[str]
) -> dict[str, Any]:
    """Returns the figures of both on a split, trained on the training split.

    Args:
      data_dir: folder of the dataset.
      manifest: of the dataset.
      split: that is scored.
      labels: of the classifier.
    """
    vocabulary: dict[str, int] = {}
    train = _read(data_dir, manifest, "train", labels, vocabulary, learns=True)
    scored = _read(data_dir, manifest, split, labels, vocabulary, learns=False)
    num_labels = len(labels)
    weights, bias = fit(train, len(vocabulary), num_labels)
    predicted = np.argmax(_logits(scored, weights, bias), axis=1)
    confusion = np.zeros([num_labels, num_labels])
    np.add.at(confusion, (scored.labels, predicted), 1)
    most_frequent = np.argmax(np.bincount(train.labels, minlength=num_labels))
    scores = classification.scores(confusion)
    return {
        "majority_accuracy": float(np.mean(scored.labels == most_frequent)),
        **{f"bag_of_words_{name}": value for name, value in scores.items()},
        "bag_of_words_training_texts": len(train.labels),
    }


def fit(texts: Texts, num_words: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weights [V, L] and biases [L] of the logistic regression."""
    weights, bias = np.zeros([num_words, num_labels]), np.zeros(num_labels)
    values = np.concatenate([weights, bias[None]])
    moments = np.zeros([2, *values.shape])
    for step in range(1, _STEPS + 1):
        gradient = _gradient(texts, values[:-1], values[-1])
        moments[0] += 0.1 * (gradient - moments[0])
        moments[1] += 0.01 * (gradient**2 - moments[1])
        first, second = moments[0] / (1 - 0.9**step), moments[1] / (1 - 0.99**step)
        rate = _RATE * (1 - step / (_STEPS + 1))
        values -= rate * first / (np.sqrt(second) + 1e-8)
    return values[:-1], values[-1]


def _gradient(texts: Texts, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Returns the gradient of loss and penalty, [V + 1, L]."""
    logits = _logits(texts, weights, bias)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(shares)), texts.labels] -= 1
    columns = [
        np.bincount(texts.words, column[texts.rows], minlength=len(weights))
        for column in shares.T
    ]
    return np.concatenate([np.stack(columns, 1) + weights, shares.sum(0)[None]])


def _logits(texts: Texts, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
    columns = [
        np.bincount(texts.rows, column[texts.words], minlength=len(texts.labels))
        for column in weights.T
    ]
    return np.stack(columns, axis=1) + bias


def _read(
    data_dir: str,
    manifest: Manifest,
    split: str,
    labels: Sequence[str],
    vocabulary: dict[str, int],
    *,
    learns: bool,
) -> Texts:
    """Reads the words of a split; those that the vocabulary lacks are left out.

    Args:
      data_dir: folder of the dataset.
      manifest: of the dataset.
      split: to read.
      labels: of the classifier.
      vocabulary: word -> number.
      learns: whether the vocabulary gets the words of this split.
    """
    words: list[int] = []
    sizes: list[int] = []
    classes: list[int] = []
    for text, label in _texts(data_dir, manifest, split, labels):
        if learns and len(words) * len(labels) >= _MAX_ENTRIES:
            break
        present = sorted(set(_WORD.findall(text.lower())))
        if learns:
            for word in present:
                vocabulary.setdefault(word, len(vocabulary))
        numbers = [vocabulary[word] for word in present if word in vocabulary]
        words += numbers
        sizes.append(len(numbers))
        classes.append(label)
    rows = np.repeat(np.arange(len(sizes)), sizes)
    return Texts(np.array(words, np.int64), rows, np.array(classes, np.int64))


def _texts(
    data_dir: str, manifest: Manifest, split: str, labels: Sequence[str]
) -> Iterator[tuple[str, int]]:
    """Yields the texts of a split, as their records hold them, and their labels."""
    path = files.join(data_dir, f"{TOKENIZER_FOLDER}/tokenizer.json")
    decode = encoding.decoder(files.read(path).decode())
    length = manifest.sequence_length
    windows = Windows(
        data_dir,
        manifest,
        split=split,
        context_length=length,
        stride=length,
        labels=labels,
    )
    size = {"global_batch_size": _BATCH_TEXTS, "batch_size": _BATCH_TEXTS}
    for batch in windows.batches(**size).as_numpy_iterator():
        rows = zip(batch[schema.TOKENS], batch[schema.LENGTH], strict=True)
        ids = [
            [i for i in tokens[:length].tolist() if i != manifest.end_of_text_id]
            for tokens, length in rows
        ]
        texts = zip(decode(ids), batch[schema.LABEL], ids, strict=True)
        yield from ((text, int(label)) for text, label, tokens in texts if tokens)
