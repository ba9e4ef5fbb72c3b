"""When a model is said to learn its corpus by heart."""

import pytest

from trainer.tasks import memorization


@pytest.mark.parametrize(
    ("training_loss", "validation_loss", "level"),
    [
        (0.1, 3.9, 0),  # the lowest so far
        (1.2, 4.1, 0),
        (1.09, 4.1, 1),
        (0.42, 4.1, 1),
        (0.40, 4.1, 2),
    ],
)
def test_level(training_loss, validation_loss, level):
    assert memorization.level(training_loss, validation_loss, 4.0) == level


def test_how_much_text_is_enough():
    assert memorization.expected(24, 100, pretrained=False).startswith("24 tokens are")
    assert not memorization.expected(25, 100, pretrained=False)
    assert memorization.expected(99, 100_000, pretrained=True)
    assert not memorization.expected(100, 100_000, pretrained=True)
