"""What a step of permutation language modelling costs, counted from shapes."""

from trainer.models.xlnet.configuration import LimitedXLNetConfig

# A sixth of the tokens are targets.
_TOKENS_PER_TARGET = 6


def step_flops(
    shape: LimitedXLNetConfig, sequence_length: int, num_sequences: int
) -> int:
    """Returns the FLOPs of the matrix products of a training step.

    A product of [n, m] and [m, k] takes 2nmk, and the backward pass has two for each.
    Attention counts the queries of all tokens and of the targets, against all tokens
    and twice as many distances. The keys of the distances, which all rows share, do not
    count, nor does recomputation.

    Args:
      shape: of the model.
      sequence_length: T, tokens of a record.
      num_sequences: records of the step.
    """
    length, channels = sequence_length, shape.d_model
    num_targets = max(length // _TOKENS_PER_TARGET, 1)
    both = length + num_targets
    weights = 2 * channels**2 + 2 * channels * shape.d_inner  # query, output and MLP
    content = 2 * length * 2 * channels**2  # keys and values
    attention = 4 * 2 * both * length * channels
    layer = 2 * both * weights + content + attention
    logits = 2 * num_targets * channels * shape.vocab_size
    return 3 * num_sequences * (shape.n_layer * layer + logits)


def activation_values(
    shape: LimitedXLNetConfig, sequence_length: int, remat: str
) -> float:
    """Returns about how many values the backward pass keeps of each token.

    Of a layer: 9 C and 2 I in and between its parts, for tokens and targets, and of
    both streams' heads weights of T keys. With `remat` "attention" only the weights of
    one layer exist at a time, with "block" only one whole layer and the inputs of the
    others.

    Args:
      shape: of the model.
      sequence_length: T, tokens of a record.
      remat: "none", "attention" or "block".
    """
    streams = 1 + 1 / _TOKENS_PER_TARGET
    between = streams * (9 * shape.d_model + 2 * shape.d_inner)
    scores = 3 * 2 * shape.n_head * sequence_length
    if remat == "block":
        return shape.n_layer * streams * shape.d_model + between + scores
    layers = 1 if remat == "attention" else shape.n_layer
    return shape.n_layer * between + scores * layers
