"""Samples text from a model: `python -m trainer.generate --workdir=… --prompt=…`."""

import json

from absl import flags

from configs import cli
from trainer import model, pretrained
from trainer.sampling import Sampler

FLAGS = flags.FLAGS


def generate() -> list[str]:
    """Loads what the flags name and continues the prompt."""
    trained = pretrained.from_flags()
    sampler = Sampler(
        trained.gpt2,
        model.load_tokenizer(trained.tokenizer),
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
    )
    return sampler([FLAGS.prompt] * FLAGS.num_return_sequences, seed=FLAGS.seed)


def define_flags() -> None:
    pretrained.define_flags()
    flags.DEFINE_string("prompt", "", "text to continue")
    flags.DEFINE_integer(
        "max_new_tokens", 50, "tokens to add, at the most", lower_bound=1
    )
    flags.DEFINE_float(
        "temperature", 1.0, "0 always takes the likeliest token", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "top_k", 0, "sample among so many of the likeliest; 0: all", lower_bound=0
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "sample among the likeliest that hold this much probability",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_integer("num_return_sequences", 1, "continuations", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "the same seed gives the same text")


def main() -> None:
    texts = generate()
    if FLAGS.json:
        print(json.dumps({"prompt": FLAGS.prompt, "texts": texts}))
        return
    for index, text in enumerate(texts, 1):
        print(f"--- {index} of {len(texts)}\n{text}")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
