"""What a step costs, counted from shapes."""

from transformers import PretrainedConfig

from trainer.models.classifier import labels_of


def step_flops(
    shape: PretrainedConfig, sequence_length: int, num_sequences: int
) -> int:
    """Returns the FLOPs of the matrix products of a training step.

    A product of [n, m] and [m, k] takes 2nmk. The backward pass has two products for
    each one of the forward pass. Attention counts only the pairs that the causal mask
    allows. Recomputation does not count.

    Args:
      shape: of the model.
      sequence_length: T, tokens of a record.
      num_sequences: records of the step.
    """
    # A classifier's logits, of one token a sequence, are nothing beside the rest.
    outputs = 0 if labels_of(shape) else shape.vocab_size
    logits = 2 * sequence_length * shape.n_embd * outputs
    return 3 * num_sequences * (blocks_flops(shape, sequence_length) + logits)


def blocks_flops(shape: PretrainedConfig, sequence_length: int) -> int:
    """Returns the FLOPs of all layers' products in the forward pass of a sequence."""
    length, channels = sequence_length, shape.n_embd
    inner = shape.n_inner or 4 * channels
    weights = 4 * channels**2 + 2 * channels * inner  # of a block's four products
    pairs = length * (length + 1) // 2
    return shape.n_layer * (2 * length * weights + 2 * 2 * pairs * channels)


def activation_values(
    shape: PretrainedConfig, sequence_length: int, remat: str
) -> float:
    """Returns how many values the backward pass keeps of each token.

    Of a block: 11 C in and between its parts, and of each head's exponentials half of
    T. With `remat` "attention" only the exponentials of one block exist at a time, with
    "block" only one whole block and the inputs of the others.

    Args:
      shape: of the model.
      sequence_length: T, tokens of a record.
      remat: "none", "attention" or "block".
    """
    layers, channels = shape.n_layer, shape.n_embd
    between = 11 * channels
    scores = shape.n_head * sequence_length / 2
    if remat == "block":
        return layers * channels + between + scores
    return layers * between + scores * (1 if remat == "attention" else layers)
