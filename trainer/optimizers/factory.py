"""Config -> optimizer, with the weight decay that biases and layer norms are spared."""

import collections
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging

from configs.schema import OptimizerConfig
from trainer.optimizers.adafactor import Adafactor, is_matrix
from trainer.optimizers.schedule import Schedule


class _Skipping(tf_keras.optimizers.Optimizer):
    """Can leave the variables, and its state of them, as they are."""

    def __init__(self, *args: Any, **kwargs: Any):
        self._state_of: dict[str, list[tf.Variable]] = {}
        self._applies: tf.Tensor | bool = True
        super().__init__(*args, **kwargs)

    @contextlib.contextmanager
    def only_if(self, applies: tf.Tensor) -> Iterator[None]:
        """Inside, gradients are applied where `applies`, bool [], is true.

        It is not needed before the update's last pass over the gradients: to let it
        choose the gradients instead would cost XLA one more pass.
        """
        self._applies = applies
        try:
            yield
        finally:
            self._applies = True

    def add_variable_from_reference(
        self, model_variable: tf.Variable, *args: Any, **kwargs: Any
    ) -> tf.Variable:
        slot = super().add_variable_from_reference(model_variable, *args, **kwargs)
        self._state_of.setdefault(self._var_key(model_variable), []).append(slot)
        return slot

    def _apply_weight_decay(self, variables: list[tf.Variable]) -> None:
        """Does nothing: Keras would decay in steps that are skipped, too."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        changed = [variable, *self._state_of.get(self._var_key(variable), [])]
        before = [tf.identity(values) for values in changed]
        if self.weight_decay and self._use_weight_decay(variable):
            rate = tf.cast(self.learning_rate, variable.dtype)
            variable.assign_sub(variable * rate * self.weight_decay)
        super().update_step(gradient, variable)
        for values, old in zip(changed, before, strict=True):
            values.assign(tf.where(self._applies, values, old))


class SkippingAdafactor(_Skipping, Adafactor):
    """Adafactor."""


class SkippingAdamW(_Skipping, tf_keras.optimizers.AdamW):
    """AdamW."""


class SkippingSGD(_Skipping, tf_keras.optimizers.SGD):
    """SGD."""


def create(
    config: OptimizerConfig, schedule: Schedule, variables: list[tf.Variable]
) -> tf_keras.optimizers.Optimizer:
    """Builds the optimizer and its state; called under the strategy's scope.

    Args:
      config: which one, and its constants.
      schedule: the learning rate.
      variables: the model's; matrices are decayed, vectors are not.
    """
    if config.name == "adafactor":
        optimizer = SkippingAdafactor(
            schedule,
            beta_1=config.beta_1 or 0.0,
            parameter_scale=config.parameter_scale,
            weight_decay=config.weight_decay,
        )
    elif config.name == "adamw":
        optimizer = SkippingAdamW(
            schedule,
            weight_decay=config.weight_decay,
            beta_1=0.9 if config.beta_1 is None else config.beta_1,
            beta_2=config.beta_2,
            epsilon=1e-8,  # the authors' value; tf_keras has 1e-7
            jit_compile=False,
        )
    else:
        optimizer = SkippingSGD(
            schedule,
            momentum=config.beta_1 or 0.0,
            weight_decay=config.weight_decay or None,
            jit_compile=False,
        )
    spared = [variable for variable in variables if not is_matrix(variable)]
    optimizer.exclude_from_weight_decay(var_list=spared)
    if config.weight_decay:
        logging.info("weight decay %g on %s", config.weight_decay, _names(variables))
    optimizer.build(variables)
    return optimizer


def _names(variables: list[tf.Variable]) -> str:
    """Lists the matrices; those that every layer has are named once."""
    names = collections.Counter(
        re.sub(r"/h_\._\d+/", "/h_._*/", variable.name)
        for variable in variables
        if is_matrix(variable)
    )
    return ", ".join(f"{name} (x {count})" for name, count in names.items())
