"""Finds the documents of packed records on the device.

Dimensions: B records, T tokens.
"""

import tensorflow as tf


def document_starts(tokens: tf.Tensor, end_token: int | None) -> tf.Tensor | None:
    """Returns where in its record each token's document begins, int32 [B, T].

    A record may begin and end in the middle of a document.

    Args:
      tokens: int32 [B, T].
      end_token: the last token of each document; None: a record is one text, and the
        result is None.
    """
    if end_token is None:
        return None
    ends = tf.cast(tf.equal(tokens, end_token), tf.int32)
    number = tf.cumsum(ends, axis=1, exclusive=True)  # of the document in its record
    # The numbers never decrease: this finds the first token of the same number.
    return tf.searchsorted(number, number)
