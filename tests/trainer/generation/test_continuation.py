"""What is shown of a text, piece by piece and at its end."""

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.generation.continuation import Continuation

END = "<|endoftext|>"
PROMPT = "a stop b"


@pytest.fixture(scope="module")
def tokenizer():
    """A token for each byte, so that characters and stop texts have several."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate([END, *alphabet])}
    raw = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END)


def grow(tokenizer, new, **options):
    """Adds a text's tokens until the continuation ends; returns it and the pieces."""
    pieces = []
    continuation = Continuation(
        tokenizer,
        tokenizer(PROMPT)["input_ids"],
        options.pop("max_new_tokens", 100),
        write=pieces.append,
        **options,
    )
    for token in tokenizer(new)["input_ids"]:
        if continuation.add(token):
            break
    return continuation, pieces


@pytest.mark.parametrize(
    ("new", "options", "expected"),
    [
        (f" and on{END}", {}, " and on"),
        (" and on", {"max_new_tokens": 4}, " and"),
        (" and stop it", {"stop": ["stop"]}, " and "),
        (" and stop it", {"stop": ["top", "stop", "it"]}, " and "),
        (" sto sto", {"stop": ["stop"], "max_new_tokens": 8}, " sto sto"),
        (f" sto{END}", {"stop": ["stop"]}, " sto"),
        ("stop", {"stop": ["stop"]}, ""),
        ("é中\U0001f600!", {"max_new_tokens": 10}, "é中\U0001f600!"),
        ("中", {"max_new_tokens": 2}, "\ufffd"),
    ],
)
@pytest.mark.parametrize("shows_prompt", [True, False])
def test_where_a_text_ends(tokenizer, new, options, expected, shows_prompt):
    continuation, pieces = grow(tokenizer, new, shows_prompt=shows_prompt, **options)
    assert continuation.is_finished
    assert continuation.text == PROMPT * shows_prompt + expected
    assert "".join(pieces) == continuation.text


def test_a_piece_is_never_taken_back(tokenizer):
    """Half a character, or half a stop text, waits for its other half."""
    _, pieces = grow(tokenizer, "é st\u4e2d stop", stop=["stop"])
    assert pieces[0] == PROMPT
    assert "".join(pieces) == f"{PROMPT}é st中 "
    assert not any("\ufffd" in piece for piece in pieces)
    assert len(pieces) > 4


def test_after_its_end_nothing_is_added(tokenizer):
    continuation, pieces = grow(tokenizer, f"x{END}")
    assert continuation.add(5)
    assert continuation.text == "".join(pieces) == f"{PROMPT}x"
