"""Creates the optimizer that a config describes.

An optimizer is one entry of `_OPTIMIZERS`. Weight decay leaves out biases and layer
norms.
"""

import tensorflow as tf
import tf_keras
from absl import logging

from configs.schema import OptimizerConfig
from trainer.models.variables import listed, name_of
from trainer.optimizers.adafactor import is_matrix
from trainer.optimizers.schedule import Schedule
from trainer.optimizers.skip_nonfinite import (
    SkippingAdafactor,
    SkippingAdamW,
    SkippingMuon,
    SkippingSGD,
)

# Muon: Jordan's value, of the blocks' matrices alone.
_BETA_1 = {"adamw": 0.9, "muon": 0.95}


def beta_1(config: OptimizerConfig) -> float:
    """Returns the decay of the first moment that acts, by default the optimizer's."""
    if config.beta_1 is None:
        return _BETA_1.get(config.name, 0.0)
    return config.beta_1


def _adafactor(config: OptimizerConfig, schedule: Schedule) -> SkippingAdafactor:
    return SkippingAdafactor(
        schedule,
        beta_1=beta_1(config),
        parameter_scale=config.parameter_scale,
        weight_decay=config.weight_decay,
    )


def _adamw(config: OptimizerConfig, schedule: Schedule) -> SkippingAdamW:
    return SkippingAdamW(
        schedule,
        weight_decay=config.weight_decay,
        beta_1=beta_1(config),
        beta_2=config.beta_2,
        epsilon=1e-8,  # the authors' value; tf_keras has 1e-7
        jit_compile=False,
    )


def _muon(config: OptimizerConfig, schedule: Schedule) -> SkippingMuon:
    return SkippingMuon(
        schedule,
        momentum=beta_1(config),
        weight_decay=config.weight_decay,
        beta_1=_BETA_1["adamw"],
        beta_2=config.beta_2,
        epsilon=1e-8,
    )


def _sgd(config: OptimizerConfig, schedule: Schedule) -> SkippingSGD:
    return SkippingSGD(
        schedule,
        momentum=beta_1(config),
        weight_decay=config.weight_decay or None,
        jit_compile=False,
    )


_OPTIMIZERS = {
    "adafactor": _adafactor,
    "adamw": _adamw,
    "muon": _muon,
    "sgd": _sgd,
}


def create(
    config: OptimizerConfig, schedule: Schedule, variables: list[tf.Variable]
) -> tf_keras.optimizers.Optimizer:
    """Builds the optimizer and its state, under the strategy's scope.

    Args:
      config: name and constants of the optimizer.
      schedule: the learning rate.
      variables: that are trained; of them, only matrices are decayed.
    """
    optimizer = _OPTIMIZERS[config.name](config, schedule)
    vectors = [variable for variable in variables if not is_matrix(variable)]
    optimizer.exclude_from_weight_decay(var_list=vectors)
    if config.weight_decay:
        names = map(name_of, filter(is_matrix, variables))
        logging.info("weight decay %g on %s", config.weight_decay, listed(names))
    optimizer.build(variables)
    return optimizer
