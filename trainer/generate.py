"""Continues prompts: `python -m trainer.generate --workdir=… --prompt=…`."""

import dataclasses
import itertools
import sys
import time
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from configs import cli
from configs.errors import UserError
from trainer.generation import prompt_file, sample_files
from trainer.generation.settings import HELP, NUMBERS, Number, Settings

FLAGS = flags.FLAGS


_NUMBERS = NUMBERS | {
    "num_return_sequences": Number(1, "continuations of each prompt", 1),
    "nfiles": Number(1, "files of `--output_dir`", 1),
    "nsamples": Number(1, "continuations of each prompt in a file", 1),
    "batch_size": Number(8, "continuations that are generated at once", 1),
}


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    flags.DEFINE_multi_string("prompt", [], "text to continue; can be repeated")
    cli.define_path(
        "prompt_file",
        "file with a prompt on each line; -: standard input; .jsonl: objects with "
        '"prompt" and "id"',
    )
    flags.DEFINE_string(
        "padding_text",
        None,
        f"{HELP['padding_text']}; default: tracking.sample_padding_text of the run",
    )
    for name, number in _NUMBERS.items():
        flags.DEFINE(number.parser, name, number.default, number.help)
    for name in ("bad_words", "stop"):
        flags.DEFINE_multi_string(name, [], f"{HELP[name]}; can be repeated")
    flags.DEFINE_string("truncate", "", "as one more --stop; also with beams")
    flags.DEFINE_bool("document", False, HELP["document"])
    flags.DEFINE_bool("no_prompt", False, "print the new text alone")
    flags.DEFINE_bool("stream", False, "print each continuation as it comes")
    flags.DEFINE_bool("interactive", False, "ask for a prompt, continue it, ask again")
    cli.define_path("output_dir", "folder for --nfiles of --nsamples each")


def check_flags() -> None:
    """Checks that no two flags contradict each other.

    Raises:
      UserError: they do.
    """
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    shown = ("json", "output_dir", "num_beams")
    excluded = {
        "stream": (*shown, "interactive"),
        "interactive": (*shown, "prompt", "prompt_file", "num_return_sequences"),
        "output_dir": ("num_return_sequences",),
    }
    for name, others in excluded.items():
        for other in others:
            if _is_set(name) and _is_set(other):
                raise UserError(f"`--{name}` excludes `--{other}`. Leave either out.")
    for name in ("nfiles", "nsamples"):
        if _is_set(name) and not FLAGS.output_dir:
            raise UserError(
                f"`--{name}` belongs to `--output_dir`, the folder of the files. Name "
                "it, or use `--num_return_sequences`."
            )


def _is_set(name: str) -> bool:
    return FLAGS[name].value != FLAGS[name].default


def _settings() -> Settings:
    values: dict[str, Any] = {
        field.name: FLAGS[field.name].value for field in dataclasses.fields(Settings)
    }
    lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
    return Settings(**values | lists)


def main() -> None:
    """Runs the program."""
    check_flags()
    prompts = prompt_file.read(FLAGS.prompt, FLAGS.prompt_file)
    settings = _settings()
    count = FLAGS.num_return_sequences * FLAGS.nfiles * FLAGS.nsamples
    settings.check(count)

    from trainer.generation import trained

    create_sampler = trained.load(
        *(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint),
        program="trainer.generate",
        padding_text=FLAGS.padding_text,
    )
    sampler = create_sampler(
        settings,
        batch_size=FLAGS.batch_size,
        begins_document=FLAGS.document,
        shows_prompt=not FLAGS.no_prompt,
    )
    start = time.perf_counter()
    if FLAGS.interactive:
        _converse(sampler)
    elif FLAGS.stream:
        for number, prompt in enumerate(prompts):
            for sample in range(count):
                _print_title(number, prompts, sample, count)
                sampler.stream(prompt.text, sample, FLAGS.seed)
                print(flush=True)
    else:
        texts = sampler([prompt.text for prompt in prompts], count, FLAGS.seed)
        _print(prompts, texts)
    if not FLAGS.interactive:
        seconds = time.perf_counter() - start
        logging.info(
            "generated %d tokens in %.1f s, %.1f tokens/s with the start",
            *(sampler.num_generated, seconds, sampler.num_generated / seconds),
        )


def _print(prompts: Sequence[prompt_file.Prompt], results: list[list[str]]) -> None:
    """Prints continuations, or writes them to `--output_dir` and prints the paths."""
    if FLAGS.output_dir:
        paths = sample_files.write(FLAGS.output_dir, results, FLAGS.nfiles)
        rows = [[path] for path in paths]
        cli.print_result({"files": paths}, as_json=FLAGS.json, rows=rows)
    elif FLAGS.json:
        answers: list[dict[str, Any]] = []
        for prompt, texts in zip(prompts, results, strict=True):
            name = {} if prompt.id is None else {"id": prompt.id}
            answers.append({**name, "prompt": prompt.text, "texts": texts})
        result = {"seed": FLAGS.seed, "results": answers}
        cli.print_result(result, as_json=True)
    else:
        for number, texts in enumerate(results):
            for sample, text in enumerate(texts):
                _print_title(number, prompts, sample, len(texts))
                print(text)


def _converse(sampler: Any) -> None:
    """Reads prompts from standard input, and streams a continuation of each."""
    for number in itertools.count():
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        try:
            # Another sample each time, so that the same prompt goes on differently.
            sampler.stream(line.removesuffix("\n"), number, FLAGS.seed)
            print(flush=True)
        except UserError as error:  # a prompt that is too long
            print(f"error: {error}", file=sys.stderr)


def _print_title(
    number: int, prompts: Sequence[prompt_file.Prompt], sample: int, count: int
) -> None:
    name = number + 1 if prompts[number].id is None else prompts[number].id
    of_prompt = f"prompt {name} of {len(prompts)}, " if len(prompts) > 1 else ""
    print(f"--- {of_prompt}{sample + 1} of {count}", flush=True)


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
