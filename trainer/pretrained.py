"""The trained model that the command line names: a run's or a Hugging Face one."""

import dataclasses

from absl import flags
from transformers import TFGPT2LMHeadModel

from configs.schema import ConfigError
from tfrecords import storage
from tfrecords.manifest import TOKENIZER_FOLDER
from trainer import checkpoint, model

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("checkpoint", "", "Hugging Face folder or name")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model and what is known of it.

    Attributes:
      gpt2: the model.
      tokenizer: where its tokenizer loads from.
      precision: that it was trained in.
      name: for people.
      step: of its run; None of a checkpoint.
      origin: "published", or, of a run, "fine-tuned" or "from scratch".
    """

    gpt2: TFGPT2LMHeadModel
    tokenizer: str
    precision: str
    name: str
    step: int | None
    origin: str


def from_flags() -> Pretrained:
    """Loads what `--workdir` or `--checkpoint` names, under the strategy's scope.

    Raises:
      ConfigError: not exactly one of them is given, or it does not load.
      CheckpointError: the workdir has no checkpoint.
    """
    workdir, folder = FLAGS.workdir, FLAGS.checkpoint
    if bool(workdir) == bool(folder):
        raise ConfigError("Give either `--workdir` or `--checkpoint`.")
    if folder:
        return Pretrained(
            model.load(folder), folder, "float32", folder, None, "published"
        )
    gpt2, record = checkpoint.load_model(workdir)
    initial = record.config["model"]["initial_checkpoint"]
    return Pretrained(
        gpt2,
        storage.join(workdir, TOKENIZER_FOLDER),
        precision=record.config["training"]["precision"],
        name=workdir,
        step=record.step,
        origin="fine-tuned" if initial else "from scratch",
    )
