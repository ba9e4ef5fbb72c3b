"""Samples text from a model: `python -m trainer.generate --workdir=… --prompt=…`."""

import json

from absl import flags
from transformers import GPT2TokenizerFast

from configs import cli
from trainer import pretrained
from trainer.sampling import Sampler

_PROMPT = flags.DEFINE_string("prompt", "", "text to continue")
_MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 50, "tokens to add, at the most", lower_bound=1
)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 1.0, "0 always takes the likeliest token", lower_bound=0.0
)
_TOP_K = flags.DEFINE_integer(
    "top_k", 0, "sample among so many of the likeliest; 0: all", lower_bound=0
)
_TOP_P = flags.DEFINE_float(
    "top_p",
    1.0,
    "sample among the likeliest that hold this much probability",
    lower_bound=0.0,
    upper_bound=1.0,
)
_NUM_RETURN_SEQUENCES = flags.DEFINE_integer(
    "num_return_sequences", 1, "continuations", lower_bound=1
)
_SEED = flags.DEFINE_integer("seed", 0, "the same seed gives the same text")
_JSON = flags.DEFINE_bool("json", False, "print the result as one JSON object")


def generate() -> list[str]:
    """Loads what the flags name and continues the prompt."""
    trained = pretrained.from_flags()
    sampler = Sampler(
        trained.gpt2,
        GPT2TokenizerFast.from_pretrained(trained.tokenizer),
        max_new_tokens=_MAX_NEW_TOKENS.value,
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        top_p=_TOP_P.value,
    )
    return sampler([_PROMPT.value] * _NUM_RETURN_SEQUENCES.value, seed=_SEED.value)


def main() -> None:
    texts = generate()
    if _JSON.value:
        print(json.dumps({"prompt": _PROMPT.value, "texts": texts}))
        return
    for index, text in enumerate(texts, 1):
        print(f"--- {index} of {len(texts)}\n{text}")


def run() -> None:
    cli.run(main)


if __name__ == "__main__":
    run()
