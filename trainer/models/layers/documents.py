"""Says which tokens of a record belong together.

Dimensions: B records, T tokens.
"""

from typing import NamedTuple

import tensorflow as tf


class Documents(NamedTuple):
    """The documents of records, which do not see each other.

    Attributes:
      starts: int32 [B, T], where in its record each token's document begins.
      prefix: int32 [B], length of a text at the start of each record that all of its
        documents see, as if it stood before each of them; None: there is none.
    """

    starts: tf.Tensor
    prefix: tf.Tensor | None = None

    def positions(self) -> tf.Tensor:
        """Returns each token's position, counted from the prefix, int32 [B, T]."""
        positions = tf.range(self.starts.shape[1]) - self.starts
        if self.prefix is None:
            return positions
        return positions + tf.where(self.starts > 0, self.prefix[:, None], 0)

    def visible(self, position: tf.Tensor) -> tf.Tensor:
        """Returns whether a token's document has a position, bool [B, 1, T, K].

        Args:
          position: int32 [K], in the record.
        """
        visible = self.starts[:, None, :, None] <= position
        if self.prefix is not None:
            visible |= position < self.prefix[:, None, None, None]
        return visible


def find_documents(tokens: tf.Tensor, end_token: int | None) -> Documents | None:
    """Returns the documents of packed records, found on the device.

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
    return Documents(tf.searchsorted(number, number))
