"""Continues prompts: `python -m trainer.generate --workdir=… --prompt=…`."""

import json
import sys

from absl import flags

from configs import cli
from configs.errors import UserError
from tfrecords.storage import files
from trainer.checkpoints import pretrained
from trainer.generation.decoding import Settings
from trainer.generation.sampling import Sampler

FLAGS = flags.FLAGS


def define_flags() -> None:
    pretrained.define_flags()
    flags.DEFINE_multi_string("prompt", [], "text to continue; can be repeated")
    flags.DEFINE_string(
        "prompt_file", "", "file with a prompt on each line; -: standard input"
    )
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
    flags.DEFINE_float(
        "repetition_penalty",
        1.0,
        "above 1, what is there already becomes less likely",
        lower_bound=0.01,
    )
    flags.DEFINE_integer(
        "num_beams", 1, "more than 1: beam search, no sampling", lower_bound=1
    )
    flags.DEFINE_integer(
        "num_return_sequences", 1, "continuations of each prompt", lower_bound=1
    )
    flags.DEFINE_integer(
        "seed",
        0,
        "the same seed gives the same text",
        lower_bound=0,
        upper_bound=2**31 - 1,
    )
    flags.DEFINE_integer(
        "batch_size", 8, "continuations that are made at once", lower_bound=1
    )
    flags.DEFINE_bool("stream", False, "print each continuation as it comes")


def prompts() -> list[str]:
    """Returns what the flags name; the empty prompt begins a text.

    Raises:
      UserError: prompts are given twice, or the file cannot be read or is empty.
    """
    path = FLAGS.prompt_file
    if not path:
        for prompt in FLAGS.prompt:
            # Bytes of an argument that are not UTF-8 come as halves of pairs.
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise UserError(f"`--prompt` must be UTF-8. Received: {prompt!a}.")
        return FLAGS.prompt or [""]
    if FLAGS.prompt:
        raise UserError("Give either `--prompt` or `--prompt_file`.")
    try:
        read = sys.stdin.buffer.read() if path == "-" else files.read(path)
        text = read.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`--prompt_file` must be a file of UTF-8 text. Received: {path}: {error}."
        ) from error
    # Not `splitlines`, which knows ten other ends of a line.
    lines = text.removesuffix("\n").replace("\r\n", "\n").split("\n")
    if not text:
        raise UserError(
            f"`--prompt_file` must hold a prompt on each line. Received: {path}, which "
            "is empty."
        )
    return lines


def main() -> None:
    if FLAGS.stream and FLAGS.json:
        raise UserError("`--stream` excludes `--json`. Leave either out.")
    given = prompts()
    settings = Settings(
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        repetition_penalty=FLAGS.repetition_penalty,
        num_beams=FLAGS.num_beams,
    )
    settings.check(FLAGS.num_return_sequences)
    trained = pretrained.from_flags()
    sampler = Sampler(
        trained.model,
        trained.architecture.load_tokenizer(trained.tokenizer),
        settings,
        batch_size=FLAGS.batch_size,
    )
    count = FLAGS.num_return_sequences
    if FLAGS.stream:
        for number, prompt in enumerate(given):
            for sample in range(count):
                _print_title(number, sample, len(given))
                sampler.stream(prompt, sample, FLAGS.seed)
        return
    results = sampler(given, count, FLAGS.seed)
    if FLAGS.json:
        pairs = zip(given, results, strict=True)
        found = [{"prompt": prompt, "texts": texts} for prompt, texts in pairs]
        print(json.dumps({"seed": FLAGS.seed, "results": found}))
        return
    for number, texts in enumerate(results):
        for sample, text in enumerate(texts):
            _print_title(number, sample, len(given))
            print(text)


def _print_title(number: int, sample: int, num_prompts: int) -> None:
    of_prompt = f"prompt {number + 1} of {num_prompts}, " if num_prompts > 1 else ""
    print(f"--- {of_prompt}{sample + 1} of {FLAGS.num_return_sequences}", flush=True)


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
