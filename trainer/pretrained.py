"""The trained model that the command line names: a run's or a Hugging Face one."""

import dataclasses
import tempfile

from absl import flags
from etils import epath
from transformers import TFGPT2LMHeadModel

from configs.schema import ConfigError
from tfrecords.manifest import TOKENIZER_FOLDER
from trainer import checkpoint, model

FLAGS = flags.FLAGS


def define_flags() -> None:
    flags.DEFINE_string("workdir", "", "folder of a run")
    flags.DEFINE_string("checkpoint", "", "Hugging Face folder or name")


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A model, where its tokenizer loads from, and the precision it was trained in."""

    gpt2: TFGPT2LMHeadModel
    tokenizer: str
    precision: str


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
        return Pretrained(model.load(folder), folder, "float32")
    gpt2, record = checkpoint.load_model(workdir)
    # transformers reads no bucket.
    tokenizer = tempfile.mkdtemp(prefix="tokenizer-")
    for path in (epath.Path(workdir) / TOKENIZER_FOLDER).iterdir():
        path.copy(epath.Path(tokenizer) / path.name)
    return Pretrained(gpt2, tokenizer, record.config["training"]["precision"])
