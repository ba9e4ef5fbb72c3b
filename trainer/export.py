"""A run's model for others: `python -m trainer.export --workdir=… --output_dir=…`.

`--format=huggingface` writes a folder that PyTorch's transformers, and all that reads
GPT-2 from safetensors, opens without TensorFlow; `--push_to_hub` uploads it.
`--format=saved_model` writes what TensorFlow and TensorFlow Serving load alone.
"""

import json
import os
import pathlib
import shutil
import tempfile

import numpy as np
import safetensors.numpy
import tensorflow as tf
from absl import flags
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2TokenizerFast,
    TFGPT2LMHeadModel,
)

from configs import cli
from configs.errors import UserError
from tfrecords.storage import files
from trainer.checkpoints import pretrained
from trainer.exporting import hub, model_card, serving
from trainer.models.gpt2 import weights

FLAGS = flags.FLAGS
_WEIGHTS = "model.safetensors"


def to_huggingface(
    gpt2: TFGPT2LMHeadModel,
    tokenizer: GPT2TokenizerFast,
    folder: pathlib.Path,
    dtype: tf.DType,
) -> None:
    """Writes weights, configuration and tokenizer as PyTorch's `save_pretrained` does.

    Raises:
      UserError: a weight is too large for `dtype`.
    """
    tensors = {}
    for name, variable in weights.pytorch_weights(gpt2).items():
        value = tf.cast(variable, dtype).numpy()
        if not np.isfinite(value.astype(np.float32)).all():
            raise UserError(
                f"`--dtype` must hold every weight. Received: {dtype.name}, in which "
                f"{name} is not finite. Use float32 or bfloat16."
            )
        tensors[name] = value.ravel() if name.endswith(".bias") else value
    safetensors.numpy.save_file(tensors, folder / _WEIGHTS, {"format": "pt"})
    end = tokenizer.eos_token_id
    config = GPT2Config.from_dict(
        {
            **gpt2.config.to_dict(),
            "architectures": ["GPT2LMHeadModel"],
            "dtype": dtype.name,
            "bos_token_id": end,
            "eos_token_id": end,
        }
    )
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=end, eos_token_id=end, pad_token_id=end
    ).save_pretrained(folder)
    tokenizer.model_max_length = gpt2.config.n_positions
    tokenizer.save_pretrained(folder)
    # safetensors lets nobody else read what it writes.
    shutil.copymode(folder / "config.json", folder / _WEIGHTS)


def _check_new(output_dir: str) -> None:
    if not output_dir:
        raise UserError("`--output_dir` is missing: a folder, or gs://….")
    if files.is_remote(output_dir):
        is_new = not files.expand(output_dir)
    else:
        is_new = not os.path.exists(output_dir) or (
            os.path.isdir(output_dir) and not os.listdir(output_dir)
        )
    if not is_new:
        raise UserError(
            f"`--output_dir` must be new or empty. Received: {output_dir}. Name "
            "another, or remove it."
        )


def _place(folder: pathlib.Path, output_dir: str) -> pathlib.Path:
    """Makes a folder that is whole the output; returns where it is on this machine."""
    if not files.is_remote(output_dir) and not os.path.exists(output_dir):
        return folder.replace(output_dir.rstrip("/"))
    # What says that it is a model comes last.
    marks = ("config.json", "saved_model.pb")
    for path in sorted(_files(folder), key=lambda path: path.name in marks):
        name = path.relative_to(folder).as_posix()
        with files.writing(files.join(output_dir, name)) as staged:
            shutil.copyfile(path, staged)
    return folder


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def define_flags() -> None:
    pretrained.define_flags()
    flags.DEFINE_string("output_dir", "", "folder that is written: new, or empty")
    flags.DEFINE_enum(
        "format", "huggingface", ["huggingface", "saved_model"], "what is written"
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16", "float16"],
        "of huggingface's weights",
    )
    flags.DEFINE_integer(
        "max_new_tokens",
        50,
        "tokens that saved_model's `generate` makes",
        lower_bound=2,
    )
    flags.DEFINE_string(
        "push_to_hub",
        "",
        "repository USER/NAME that huggingface's folder is uploaded to",
    )
    flags.DEFINE_bool("private", False, "make a new repository of the hub private")


def main() -> None:
    _check_new(FLAGS.output_dir)
    if FLAGS.push_to_hub and FLAGS.format != "huggingface":
        raise UserError("`--push_to_hub` needs `--format=huggingface`.")
    uploader = hub.Uploader(FLAGS.push_to_hub) if FLAGS.push_to_hub else None
    trained = pretrained.from_flags()
    num_positions = trained.model.config.n_positions
    if FLAGS.format == "saved_model" and FLAGS.max_new_tokens >= num_positions:
        raise UserError(
            "`--max_new_tokens` must leave room for a prompt in the model's "
            f"{num_positions} positions. Received: {FLAGS.max_new_tokens}."
        )
    tokenizer = trained.architecture.load_tokenizer(trained.tokenizer)
    beside = None
    if not files.is_remote(FLAGS.output_dir):
        beside = pathlib.Path(FLAGS.output_dir).absolute().parent
        beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=beside) as parent:
        folder = pathlib.Path(parent) / "model"
        folder.mkdir()
        if FLAGS.format == "saved_model":
            serving.save(trained.model, tokenizer, folder, FLAGS.max_new_tokens)
        else:
            to_huggingface(trained.model, tokenizer, folder, tf.as_dtype(FLAGS.dtype))
            (folder / "README.md").write_text(model_card.write(trained, FLAGS.workdir))
        folder = _place(folder, FLAGS.output_dir)
        names = [path.relative_to(folder).as_posix() for path in _files(folder)]
        address = uploader.push(folder, FLAGS.private) if uploader else None
    found = {"output_dir": FLAGS.output_dir, "files": names, "hub": address}
    if FLAGS.json:
        print(json.dumps(found))
        return
    print(f"{trained.name} -> {FLAGS.output_dir}: {', '.join(names)}")
    if address:
        print(f"pushed to {address}")


def run() -> None:
    cli.run(main, define_flags)


if __name__ == "__main__":
    run()
