"""Continues prompts: `python -m trainer.generate --workdir=… --prompt=…`."""

import sys
from collections.abc import Sequence

from absl import flags

from configs import cli
from configs.errors import UserError
from tfrecords.storage import files
from trainer.generation.settings import Settings

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    flags.DEFINE_multi_string("prompt", [], "text to continue; can be repeated")
    cli.define_path("prompt_file", "file with a prompt on each line; -: standard input")
    flags.DEFINE_string(
        "padding_text",
        None,
        "text before each prompt, which is not shown; default: "
        "tracking.sample_padding_text of the run",
    )
    flags.DEFINE_integer(
        "max_new_tokens", 50, "tokens to add, at the most", lower_bound=1
    )
    flags.DEFINE_float(
        "temperature", 1.0, "0 always takes the likeliest token", lower_bound=0.0
    )
    flags.DEFINE_integer(
        "top_k",
        0,
        "sample among so many of the likeliest tokens; 0: all",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "top_p",
        1.0,
        "sample among the likeliest tokens that hold this probability together",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    flags.DEFINE_float(
        "repetition_penalty",
        1.0,
        "above 1, tokens that the text contains become less likely",
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
        "batch_size", 8, "continuations that are generated at once", lower_bound=1
    )
    flags.DEFINE_bool("stream", False, "print each continuation as it comes")


def read_prompts(prompts: Sequence[str], path: str) -> list[str]:
    """Returns the prompts of `--prompt` or of `--prompt_file`.

    Without any, one empty prompt: the beginning of a text.

    Raises:
      UserError: both are given, or the file cannot be read or is empty.
    """
    if not path:
        for prompt in prompts:
            # Bytes of an argument that are not UTF-8 become lone surrogates.
            if any("\ud800" <= character <= "\udfff" for character in prompt):
                raise UserError(f"`--prompt` must be UTF-8. Received: {prompt!a}.")
        return list(prompts) or [""]
    if prompts:
        raise UserError("Give either `--prompt` or `--prompt_file`.")
    try:
        content = sys.stdin.buffer.read() if path == "-" else files.read(path)
        text = content.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"`--prompt_file` must be a file of UTF-8 text. Received: {path}: {error}."
        ) from error
    if not text:
        raise UserError(
            f"`--prompt_file` must hold a prompt on each line. Received: {path}, which "
            "is empty."
        )
    # `splitlines` would also split at ten other characters.
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    if FLAGS.stream and FLAGS.json:
        raise UserError("`--stream` excludes `--json`. Leave either out.")
    if FLAGS.stream and FLAGS.num_beams > 1:
        raise UserError("`--stream` excludes `--num_beams`. Leave either out.")
    prompts = read_prompts(FLAGS.prompt, FLAGS.prompt_file)
    settings = Settings(
        max_new_tokens=FLAGS.max_new_tokens,
        temperature=FLAGS.temperature,
        top_k=FLAGS.top_k,
        top_p=FLAGS.top_p,
        repetition_penalty=FLAGS.repetition_penalty,
        num_beams=FLAGS.num_beams,
    )
    settings.check(FLAGS.num_return_sequences)

    from trainer.checkpoints import pretrained
    from trainer.generation.sampling import Sampler
    from trainer.models import create

    trained = pretrained.load(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    if trained.task == "classification":
        raise UserError(
            "`trainer.generate` needs a language model. Received: a classifier, "
            f"{trained.name}. Use `trainer.predict`."
        )
    padding_text = FLAGS.padding_text
    sampler = Sampler(
        trained.architecture.as_transformers(trained.model),
        create.load_tokenizer(trained.architecture, trained.tokenizer, trained.model),
        settings,
        batch_size=FLAGS.batch_size,
        start_token=trained.start_token,
        padding_text=trained.padding_text if padding_text is None else padding_text,
    )
    count = FLAGS.num_return_sequences
    if FLAGS.stream:
        for number, prompt in enumerate(prompts):
            for sample in range(count):
                _print_title(number, len(prompts), sample, count)
                sampler.stream(prompt, sample, FLAGS.seed)
        return
    results = sampler(prompts, count, FLAGS.seed)
    if FLAGS.json:
        pairs = zip(prompts, results, strict=True)
        texts_of_prompts = [{"prompt": p, "texts": texts} for p, texts in pairs]
        result = {"seed": FLAGS.seed, "results": texts_of_prompts}
        cli.print_result(result, as_json=True)
        return
    for number, texts in enumerate(results):
        for sample, text in enumerate(texts):
            _print_title(number, len(prompts), sample, count)
            print(text)


def _print_title(number: int, num_prompts: int, sample: int, count: int) -> None:
    of_prompt = f"prompt {number + 1} of {num_prompts}, " if num_prompts > 1 else ""
    print(f"--- {of_prompt}{sample + 1} of {count}", flush=True)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
