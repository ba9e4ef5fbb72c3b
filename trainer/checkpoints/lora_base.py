"""What a checkpoint of LoRA leaves out: the frozen weights, which it only names."""

import tensorflow as tf
import tf_keras

from configs.errors import DataError
from trainer.checkpoints import folders, tensor_file
from trainer.models import lora


def saved(model: tf_keras.Model) -> list[tf.Variable]:
    """Returns the variables that a checkpoint holds: with LoRA, those it trains."""
    return lora.trained(model) or model.variables


def sha256_of(model: tf_keras.Model) -> str:
    """Returns the fingerprint of what LoRA's adapters belong to; "" without LoRA."""
    trained = {id(variable) for variable in lora.trained(model)}
    if not trained:
        return ""
    frozen = [variable for variable in model.variables if id(variable) not in trained]
    return tensor_file.sha256_of(tensor_file.named("model", frozen))


def check(record: folders.Record, sha256: str) -> None:
    """Compares the frozen weights with those that a checkpoint's adapters belong to.

    Args:
      record: of the checkpoint.
      sha256: of the weights that there are now.

    Raises:
      DataError: they differ.
    """
    if record.base_sha256 == sha256:
        return
    source = record.config["model"]["initial_checkpoint"] or "a random model"
    raise DataError(
        "The adapters of LoRA must be used with the weights that they were trained on. "
        f"Received: weights {sha256[:12]}, made from {source}, and adapters of "
        f"{record.base_sha256[:12]}. Put the weights that the run began with back, or "
        "start in a new --workdir."
    )
