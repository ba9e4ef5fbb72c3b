"""Muon for the matrices of the blocks, and AdamW for everything else.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks"
(2024), https://kellerjordan.github.io/posts/muon/, for the update and its iteration;
Liu et al., "Muon is Scalable for LLM Training" (2025), arXiv:2502.16982, for weight
decay and the size of the update. Comments name them "Jordan" and "Moonlight".

Embeddings and vectors are AdamW's, as both recommend. A matrix keeps one value for each
of its own, where AdamW keeps two.
"""

import math
import re
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging

from configs.errors import UserError
from trainer.models.variables import listed, name_of
from trainer.optimizers.adafactor import is_matrix

# Jordan: the polynomial of an iteration; it ends near 1, between 0.7 and 1.2.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
NUM_ITERATIONS = 5
SMALLEST_NORM = 1e-7
# Jordan: the iteration is stable in bfloat16, which is the fastest, also on a CPU.
DTYPE = tf.bfloat16
UPDATE_RMS = 0.2
_IN_A_BLOCK = re.compile(r"\.(h|layer)\.\d+\.|(^|\.)block\.")


def is_hidden_matrix(variable: tf.Variable) -> bool:
    """Returns whether a variable is a matrix of a block: no embedding, head or bias."""
    return is_matrix(variable) and bool(_IN_A_BLOCK.search(name_of(variable)))


class Muon(tf_keras.optimizers.AdamW):
    """Muon and AdamW, with one learning rate and one weight decay for both.

    Args:
      learning_rate: rate or schedule.
      momentum: of the blocks' matrices.
      weight_decay: decoupled: a parameter loses learning_rate * weight_decay of itself.
      **adamw: AdamW's other arguments, for all other variables.
    """

    def __init__(
        self,
        learning_rate: float | tf_keras.optimizers.schedules.LearningRateSchedule,
        *,
        momentum: float,
        weight_decay: float = 0.0,
        name: str = "Muon",
        **adamw: Any,
    ):
        super().__init__(
            learning_rate, weight_decay, name=name, jit_compile=False, **adamw
        )
        self.momentum = momentum

    def build(self, var_list: list[tf.Variable]) -> None:
        """Creates the state: float32 momentums of matrices, AdamW's of the others.

        Raises:
          UserError: none of the variables is a matrix of a block.
        """
        if getattr(self, "_built", False):
            return
        matrices = list(filter(is_hidden_matrix, var_list))
        if not matrices:
            raise UserError(
                "`optimizer.name=muon` must have a matrix of a block to train. "
                f"Received: {listed(map(name_of, var_list))}. Use adamw."
            )
        logging.info("muon updates %s", listed(map(name_of, matrices)))
        super().build([v for v in var_list if not is_hidden_matrix(v)])
        self._momentum_of = {
            self._var_key(variable): self.add_variable_from_reference(
                variable, "momentum"
            )
            for variable in matrices
        }
        self._index_dict |= dict.fromkeys(self._momentum_of)  # Keras looks them up

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable) -> None:
        """Updates one variable and its state."""
        momentum = self._momentum_of.get(self._var_key(variable))
        if momentum is None:
            super().update_step(gradient, variable)
            return
        # Jordan's code: B_t = mu B_(t-1) + (1 - mu) G_t, and Nesterov's
        # mu B_t + (1 - mu) G_t. The post sums without 1 - mu, whose scale goes below.
        average = self.momentum * momentum + (1.0 - self.momentum) * gradient
        momentum.assign(average)
        nesterov = self.momentum * average + (1.0 - self.momentum) * gradient
        parts = _split(nesterov, _num_parts(name_of(variable)))
        # Moonlight, section 2.2: an orthogonal [A, B] has RMS 1/sqrt(max(A, B)). Scaled
        # to 0.2, as AdamW's updates have, rate and weight decay of AdamW fit as well.
        scale = UPDATE_RMS * math.sqrt(max(parts.shape[1:]))
        rate = tf.cast(self.learning_rate, variable.dtype)
        variable.assign_sub(rate * scale * _join(orthogonalize(parts)))


def orthogonalize(matrices: tf.Tensor) -> tf.Tensor:
    """Moves all singular values of matrices near to 1, by Newton-Schulz iterations.

    Args:
      matrices: float32 [N, A, B].

    Returns:
      float32 [N, A, B], U V' approximately, where a matrix is U S V'.
    """
    # Jordan: singular values are at most 1 after division by the Frobenius norm.
    norm = tf.norm(matrices, axis=[1, 2], keepdims=True)
    x = tf.cast(matrices / tf.maximum(norm, SMALLEST_NORM), DTYPE)
    # Jordan: of a tall matrix the transpose, so that X X' is the smaller product.
    is_tall = matrices.shape[1] > matrices.shape[2]
    if is_tall:
        x = tf.linalg.matrix_transpose(x)
    a, b, c = COEFFICIENTS
    for _ in range(NUM_ITERATIONS):
        # Jordan: X <- a X + b (X X') X + c (X X')^2 X
        gram = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * gram + c * tf.matmul(gram, gram), x)
    if is_tall:
        x = tf.linalg.matrix_transpose(x)
    return tf.cast(x, tf.float32)


def _num_parts(name: str) -> int:
    """Returns how many matrices a variable is, side by side.

    GPT-2's c_attn is three, of queries, keys and values. Jordan: each is orthogonalized
    alone. Together, the one with the largest gradients would take the others' share.
    """
    return 3 if "c_attn" in name and "lora_a" not in name else 1


def _split(matrix: tf.Tensor, num_parts: int) -> tf.Tensor:
    """Returns the parts of [A, N B] as [N, A, B]."""
    rows, columns = matrix.shape
    parts = tf.reshape(matrix, [rows, num_parts, columns // num_parts])
    return tf.transpose(parts, [1, 0, 2])


def _join(parts: tf.Tensor) -> tf.Tensor:
    """Returns the parts [N, A, B] side by side, [A, N B]."""
    num_parts, rows, columns = parts.shape
    return tf.reshape(tf.transpose(parts, [1, 0, 2]), [rows, num_parts * columns])
