"""Exports a trained model: `python -m trainer.export --workdir=… --output_dir=…`.

`--format=huggingface` writes a folder that PyTorch's transformers and other readers of
GPT-2's safetensors open without TensorFlow; LoRA's adapters are merged into it.
`--format=peft` writes the adapters alone, for PEFT. `--push_to_hub` uploads either.
`--format=saved_model` writes a SavedModel for TensorFlow alone or TensorFlow Serving.
"""

import pathlib
from typing import Any

from absl import flags, logging

from configs import cli
from configs.errors import UserError
from trainer.exporting import folders

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the program's flags."""
    cli.define_model()
    cli.define_path("output_dir", "folder that is written: new, or empty")
    flags.DEFINE_enum(
        "format",
        "huggingface",
        ["huggingface", "saved_model", "peft"],
        "what is written",
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ["float32", "bfloat16", "float16"],
        "of huggingface's and peft's weights",
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
        "repository USER/NAME that huggingface's or peft's folder is uploaded to",
    )
    flags.DEFINE_string(
        "license",
        "",
        "that the model card states, such as mit; default: what the card of the "
        "initial checkpoint states, else unknown",
    )
    flags.DEFINE_list("language", [], "that the model card states, such as en")
    flags.DEFINE_list(
        "dataset", [], "of the hub, that the model card names as trained on"
    )
    flags.DEFINE_bool("private", False, "make a new repository of the hub private")


def main() -> None:
    """Runs the program."""
    cli.check_model(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    folders.check_new(FLAGS.output_dir)
    if FLAGS.push_to_hub and FLAGS.format == "saved_model":
        raise UserError("`--push_to_hub` needs `--format=huggingface` or `peft`.")
    uploader = None
    if FLAGS.push_to_hub:
        from trainer.exporting import hub

        uploader = hub.Uploader(FLAGS.push_to_hub)

    from trainer.checkpoints import pretrained
    from trainer.exporting import adapter
    from trainer.models import create
    from trainer.models.classifier import labels_of

    trained = pretrained.load(FLAGS.workdir, FLAGS.step, FLAGS.checkpoint)
    if labels_of(trained.model.config) and FLAGS.format != "huggingface":
        raise UserError(
            "A classifier is exported by `--format=huggingface`. Received: "
            f"{FLAGS.format}."
        )
    num_positions = trained.model.config.n_positions
    if FLAGS.format == "saved_model" and FLAGS.max_new_tokens >= num_positions:
        raise UserError(
            "`--max_new_tokens` must leave room for a prompt in the model's "
            f"{num_positions} positions. Received: {FLAGS.max_new_tokens}."
        )
    tokenizer = create.load_tokenizer(
        trained.architecture, trained.tokenizer, trained.model
    )
    if FLAGS.format == "peft":
        adapter.check(trained)
    with folders.temporary(FLAGS.output_dir) as folder:
        logging.info("exporting %s to %s", trained.name, FLAGS.output_dir)
        _write(trained, tokenizer, folder)
        folder = folders.place(folder, FLAGS.output_dir)
        names = folders.file_names(folder)
        address = uploader.push(folder, FLAGS.private) if uploader else None
    result = {"output_dir": FLAGS.output_dir, "files": names, "hub": address}
    cli.print_result(result, as_json=FLAGS.json)


def _write(trained: Any, tokenizer: Any, folder: pathlib.Path) -> None:
    """Writes what `--format` asks for, and the model card beside what has one."""
    import tensorflow as tf

    from trainer.exporting import adapter, huggingface, model_card, serving
    from trainer.models.classifier import labels_of

    dtype = tf.as_dtype(FLAGS.dtype)
    if FLAGS.format == "peft":
        adapter.save(trained, tokenizer, folder, dtype)
    else:
        model = trained.architecture.as_transformers(trained.model)
        if FLAGS.format == "saved_model":
            if trained.architecture.decoder is None:
                raise UserError(
                    "`--format=saved_model` needs a model whose generation can be "
                    f"compiled. Received: {trained.architecture.name}. Use "
                    "`--format=huggingface`."
                )
            serving.save(model, tokenizer, folder, FLAGS.max_new_tokens)
            return
        max_length = trained.sequence_length if labels_of(model.config) else None
        huggingface.save(model, tokenizer, folder, dtype, trained.dropout, max_length)
    card = model_card.write(
        trained,
        FLAGS.workdir,
        repository=FLAGS.push_to_hub,
        license=FLAGS.license,
        languages=FLAGS.language,
        datasets=FLAGS.dataset,
        is_adapter=FLAGS.format == "peft",
    )
    (folder / folders.MODEL_CARD).write_text(card, encoding="utf-8")


def run() -> None:
    """Runs the program as a command."""
    cli.run(main, define_flags, uses_tensorflow=True)


if __name__ == "__main__":
    run()
