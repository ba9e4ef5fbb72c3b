"""Classification: one of several labels is predicted from a whole text.

The prediction is made from the state at the text's last token. The record's length says
where that is: the token that fills a record may be in the text, too. An end token
behind the text, which nothing in it has seen, is passed over; so a classifier needs
none, and reads a text as PyTorch's pipeline does.

Dimensions: B texts, T tokens, L labels.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from configs.errors import DataError
from configs.schema import TrainingConfig
from tfrecords.manifest import Manifest, Split
from trainer.models import classifier
from trainer.models.architecture import DEFAULT_OPTIONS, Architecture, Options
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.tasks.task import Batch, Task


def logits(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
) -> tf.Tensor:
    """Returns the logits of the labels, float32 [B, L].

    Args:
      architecture: of the model.
      model: a classifier; owns the weights.
      batch: `tokens` int32 [B, T], with padding at the end; `length` int32 [B].
      options: how the network is computed.
      dropout: at every place where the network has dropout.
    """
    tokens, last = batch["tokens"], tf.maximum(batch["length"] - 1, 0)
    end_id = model.config.eos_token_id
    is_end = tf.gather(tokens, last, batch_dims=1) == (-1 if end_id is None else end_id)
    last = tf.maximum(last - tf.cast(is_end, tf.int32), 0)
    hidden = architecture.hidden_states(model, tokens, options, dropout)
    # A product instead of a gather: a TPU has no fast gradient of the latter.
    place = tf.one_hot(last, tokens.shape[1], dtype=hidden.dtype)
    state = tf.einsum("bt,btc->bc", place, hidden)
    (head,) = classifier.head_of(model)
    return tf.cast(state, tf.float32) @ head


def summed_loss(
    architecture: Architecture,
    model: tf_keras.Model,
    batch: Batch,
    options: Options = DEFAULT_OPTIONS,
    dropout: Dropout = NO_DROPOUT,
    *,
    class_weights: tuple[float, ...] = (),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the cross-entropy summed over the texts, and the sum of their weights.

    Args:
      architecture: of the model.
      model: owns the weights.
      batch: as in `logits`, and `label` int32 [B].
      options: how the network is computed.
      dropout: at every place where the network has dropout.
      class_weights: of the texts of each label; empty: 1.

    Returns:
      float32 [] in nats, float32 [].
    """
    losses, weights = _losses(
        logits(architecture, model, batch, options, dropout), batch
    )
    if class_weights:
        weights *= tf.gather(tf.constant(class_weights), batch["label"])
    return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


def evaluation_sums(
    architecture: Architecture, model: tf_keras.Model, batch: Batch, options: Options
) -> dict[str, tf.Tensor]:
    """Returns the summed loss, and how often each label was predicted for each.

    A row of `confusion`, float32 [L, L], is of the texts that have a label, a column of
    those that are predicted to have it.
    """
    values = logits(architecture, model, batch, options)
    losses, weights = _losses(values, batch)
    num_labels = values.shape[1]
    true = tf.one_hot(batch["label"], num_labels) * weights[:, None]
    predicted = tf.one_hot(tf.argmax(values, axis=1), num_labels)
    return {
        "loss_sum": tf.reduce_sum(losses * weights),
        "confusion": tf.einsum("bi,bj->ij", true, predicted),
    }


def _losses(values: tf.Tensor, batch: Batch) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns each text's cross-entropy, and 1 where there is a text: float32 [B]."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["label"], values)
    return losses, tf.cast(batch["length"] > 0, tf.float32)


def figures(sums: Mapping[str, Any]) -> dict[str, float]:
    """Returns loss in nats per text, accuracy and macro F1.

    Macro F1 is the mean over the labels of F1, which is 0 of a label that the split
    lacks and that is never predicted.

    Raises:
      DataError: there is no text.
    """
    confusion = np.asarray(sums["confusion"], np.float64)
    if not confusion.sum():
        raise DataError("The split must hold a labelled text. Received: none.")
    return {
        "loss": float(sums["loss_sum"] / confusion.sum()),
        **scores(confusion),
    }


def scores(confusion: np.ndarray) -> dict[str, float]:
    """Returns accuracy and macro F1 of a confusion matrix [L, L]: see `figures`."""
    right = np.diag(confusion)
    # 2 TP / (2 TP + FP + FN)
    both = confusion.sum(axis=0) + confusion.sum(axis=1)
    f1 = np.divide(2 * right, both, out=np.zeros(len(both)), where=both > 0)
    return {
        "accuracy": float(right.sum() / confusion.sum()),
        "macro_f1": float(f1.mean()),
    }


def split_figures(sums: Mapping[str, Any], split: Split) -> dict[str, Any]:
    """Returns the figures of a whole split, with the confusion matrix."""
    confusion = np.asarray(sums["confusion"]).astype(int)
    return {
        "texts": int(confusion.sum()),
        "truncated_texts": split.truncated_documents,
        **figures(sums),
        "confusion": confusion.tolist(),
    }


def of_run(task: Task, settings: TrainingConfig, manifest: Manifest) -> Task:
    """Returns the task with the class weights of a run, after a look at its labels.

    Raises:
      DataError: the dataset has no labels, or one alone, or a label that is not in the
        training split; or its texts begin or end with tokens that a reader does not
        add.
    """
    check_data(manifest, manifest.labels, [*manifest.splits])
    if settings.class_weights == "none":
        return task
    counts = manifest.split("train").labels
    sizes = np.array([counts[label] for label in manifest.labels])
    # A label's texts together weigh as much as another one's: n / (L n_label).
    weights = sizes.sum() / (len(sizes) * sizes)
    loss = functools.partial(summed_loss, class_weights=tuple(map(float, weights)))
    return dataclasses.replace(task, summed_loss=loss)


def check_data(
    manifest: Manifest, labels: Sequence[str], splits: Sequence[str]
) -> None:
    """Raises DataError where splits do not fit a classifier of these labels."""
    if not manifest.labelled:
        raise DataError(
            "`training.task=classification` needs a dataset with labels. Received: one "
            f"of mode {manifest.mode}. Preprocess with `--config.data.mode=labelled`."
        )
    if len(labels) < 2:
        raise DataError(
            "The training split must hold two labels or more. Received: "
            f"{', '.join(labels) or 'none'}. Add texts of another label, or set "
            "`--config.data.label_field`."
        )
    for name in splits:
        split = manifest.split(name)
        if unseen := [label for label in split.labels if label not in labels]:
            texts = sum(split.labels[label] for label in unseen)
            raise DataError(
                "Each label must be one that the classifier learns: "
                f"{', '.join(labels)}. Received: {texts} texts of the {name} split "
                f"with {', '.join(sorted(unseen))}. Add such texts to the training "
                "split, or leave them out."
            )
    tokens = manifest.start_token, manifest.config.get("end_token") or ""
    if any(tokens):
        raise DataError(
            "A classifier reads texts without `data.start_token` and without an "
            "`data.end_token` of its own, as PyTorch's pipeline does. Received: "
            f"{', '.join(filter(None, tokens))}. Preprocess without them."
        )


TASK = Task(
    name="classification",
    features=("length", "label"),
    summed_loss=summed_loss,
    evaluation_sums=evaluation_sums,
    figures=figures,
    split_figures=split_figures,
    of_run=of_run,
    classifies=True,
)
