"""Adafactor with factored state only.

Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory
Cost" (2018), arXiv:1804.04235; comments name its sections and algorithms. Without
momentum the state of an [n, m] matrix is n + m numbers.
"""

import tensorflow as tf
import tf_keras

EPSILON_1 = 1e-30  # regularizes the squared gradient
EPSILON_2 = 1e-3  # smallest scale of a parameter
DECAY_EXPONENT = 0.8
CLIPPING_THRESHOLD = 1.0


def is_matrix(variable: tf.Variable) -> bool:
    """Returns whether a variable has rows and columns to factor; [1, n] has not."""
    return variable.shape.rank == 2 and min(variable.shape) > 1


class Adafactor(tf_keras.optimizers.Optimizer):
    """Adafactor, algorithms 4 and 5 of the paper.

    Args:
      learning_rate: rate or schedule, rho_t in the paper. With `parameter_scale` the
        step is relative to the parameter.
      beta_1: momentum of the scaled update; 0 keeps no state for it.
      parameter_scale: multiply the step by max(EPSILON_2, RMS(parameter)).
      weight_decay: decoupled: the parameter loses learning_rate * weight_decay of
        itself. `exclude_from_weight_decay` exempts variables.
    """

    def __init__(
        self,
        learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule,
        *,
        beta_1: float = 0.0,
        parameter_scale: bool = False,
        weight_decay: float = 0.0,
        name: str = "Adafactor",
    ):
        # The base class would decay the weights before the update is computed.
        super().__init__(name=name, weight_decay=None, jit_compile=False)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1 = beta_1
        self.parameter_scale = parameter_scale
        self.decay = weight_decay

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the state: float32 row and column means of squared gradients."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        # One entry per variable; None where the other form holds its second moment.
        self._rows: list[tf.Variable | None] = []
        self._columns: list[tf.Variable | None] = []
        self._full: list[tf.Variable | None] = []
        self._momentums: list[tf.Variable] = []
        for variable in var_list:
            if is_matrix(variable):
                num_rows, num_columns = variable.shape
                self._rows.append(self._slot(variable, "v_row", [num_rows]))
                self._columns.append(self._slot(variable, "v_column", [num_columns]))
                self._full.append(None)
            else:
                self._rows.append(None)
                self._columns.append(None)
                self._full.append(self._slot(variable, "v", variable.shape))
            if self.beta_1:
                self._momentums.append(self._slot(variable, "m", variable.shape))
        self._built = True

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable and its state."""
        index = self._index_dict[self._var_key(variable)]
        gradient = tf.cast(gradient, tf.float32)
        rate = tf.identity(self.learning_rate)
        step = tf.cast(self.iterations + 1, tf.float32)

        # Section 7.2: beta2_t = 1 - t^-0.8, which needs no bias correction.
        beta_2 = 1.0 - tf.pow(step, -DECAY_EXPONENT)
        squared = tf.square(gradient) + EPSILON_1
        if is_matrix(variable):
            # Algorithm 4: the second moment is (row x column) / mean. The paper sums
            # where this, like the authors' code, takes means.
            row = self._decayed(self._rows[index], beta_2, tf.reduce_mean(squared, 1))
            column = self._decayed(
                self._columns[index], beta_2, tf.reduce_mean(squared, 0)
            )
            row_factor = tf.math.rsqrt(row / tf.reduce_mean(row))  # (n,)
            update = gradient * row_factor[:, None] * tf.math.rsqrt(column)[None, :]
        else:
            second = self._decayed(self._full[index], beta_2, squared)
            update = gradient * tf.math.rsqrt(second)

        # Section 6: U / max(1, RMS(U) / d).
        update /= tf.maximum(1.0, _rms(update) / CLIPPING_THRESHOLD)
        scale = rate
        if self.parameter_scale:
            # Section 8: alpha_t = max(epsilon_2, RMS(X)) rho_t.
            scale = rate * tf.maximum(EPSILON_2, _rms(variable))
        update *= scale
        if self.beta_1:
            # As in the authors' code (tensor2tensor), the momentum is of the step.
            momentum = self._momentums[index]
            update = self._decayed(momentum, self.beta_1, update)
        if self.decay and self._use_weight_decay(variable):
            update += rate * self.decay * variable
        variable.assign_sub(tf.cast(update, variable.dtype))

    def _slot(self, variable: tf.Variable, name: str, shape: list) -> tf.Variable:
        return self.add_variable_from_reference(variable, name, shape=shape)

    @staticmethod
    def _decayed(
        slot: tf.Variable, decay: tf.Tensor | float, value: tf.Tensor
    ) -> tf.Tensor:
        """Updates an exponential average and returns it."""
        average = decay * slot + (1.0 - decay) * value
        slot.assign(average)
        return average


def _rms(values: tf.Tensor) -> tf.Tensor:
    return tf.sqrt(tf.reduce_mean(tf.square(values)))
