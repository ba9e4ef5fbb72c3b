"""What a step costs, counted from shapes."""

from trainer.models.algpt2.configuration import ALGPT2Config
from trainer.models.gpt2 import costs


def step_flops(shape: ALGPT2Config, sequence_length: int, num_sequences: int) -> int:
    """Returns the FLOPs of the matrix products of a training step.

    As GPT-2's, but for the embedding: a product into and out of its E columns, and
    logits of E channels.

    Args:
      shape: of the model.
      sequence_length: T, tokens of a record.
      num_sequences: records of the step.
    """
    columns = 2 * shape.n_embd + shape.vocab_size
    embedding = 2 * sequence_length * shape.embedding_size * columns
    return 3 * num_sequences * (costs.blocks_flops(shape, sequence_length) + embedding)
