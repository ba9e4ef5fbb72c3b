"""Optimizers that can skip an update, as the step does where a loss is not finite."""

import contextlib
from collections.abc import Iterator
from typing import Any

import tensorflow as tf
import tf_keras

from trainer.optimizers.adafactor import Adafactor
from trainer.optimizers.muon import Muon


class SkipNonFiniteUpdates(tf_keras.optimizers.Optimizer):
    """Mixin of an optimizer whose updates apply under a condition.

    Outside `apply_if` every update applies.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._state_of: dict[str, list[tf.Variable]] = {}
        self._applies: tf.Tensor | bool = True
        super().__init__(*args, **kwargs)

    @contextlib.contextmanager
    def apply_if(self, applies: tf.Tensor) -> Iterator[None]:
        """Applies the updates made inside only where a condition holds.

        Where it does not, variables and optimizer state keep their values. The choice
        is made in the last pass over each variable: choosing the gradients instead
        would cost XLA one more pass over them.

        Args:
          applies: bool [].
        """
        self._applies = applies
        try:
            yield
        finally:
            self._applies = True

    def add_variable_from_reference(
        self, model_variable: tf.Variable, *args: Any, **kwargs: Any
    ) -> tf.Variable:
        """Creates a slot and remembers whose it is."""
        slot = super().add_variable_from_reference(model_variable, *args, **kwargs)
        self._state_of.setdefault(self._var_key(model_variable), []).append(slot)
        return slot

    def _apply_weight_decay(self, variables: list[tf.Variable]) -> None:
        """Does nothing: Keras would also decay the weights in skipped steps."""

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable and its state where the condition holds."""
        changed = [variable, *self._state_of.get(self._var_key(variable), [])]
        before = [tf.identity(values) for values in changed]
        if self.weight_decay and self._use_weight_decay(variable):
            rate = tf.cast(self.learning_rate, variable.dtype)
            variable.assign_sub(variable * rate * self.weight_decay)
        super().update_step(gradient, variable)
        for values, old in zip(changed, before, strict=True):
            values.assign(tf.where(self._applies, values, old))


class SkippingAdafactor(SkipNonFiniteUpdates, Adafactor):
    """Adafactor."""


class SkippingAdamW(SkipNonFiniteUpdates, tf_keras.optimizers.AdamW):
    """AdamW."""


class SkippingMuon(SkipNonFiniteUpdates, Muon):
    """Muon, and AdamW beside it."""


class SkippingSGD(SkipNonFiniteUpdates, tf_keras.optimizers.SGD):
    """SGD."""
