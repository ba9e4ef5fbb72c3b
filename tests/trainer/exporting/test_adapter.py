"""LoRA's adapters as a folder for PEFT, opened by PEFT on PyTorch's GPT-2."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from transformers import GPT2Config

from configs.errors import UserError
from configs.schema import LoraConfig
from tests import programs
from tests.conftest import SMALL, assert_refused, tiny_model
from trainer.checkpoints.pretrained import Pretrained
from trainer.exporting import adapter, huggingface
from trainer.models import lora, registry
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

TOKENS = np.random.default_rng(0).integers(0, 97, (2, 16))


def pretrained(model, architecture=GPT2):
    return Pretrained(
        *(model, architecture, "causal_lm", "", "float32", "run", 1, "", "")
    )


def in_peft(base, folder, tokens=TOKENS):
    """The logits of PyTorch's GPT-2 with PEFT's adapters."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    peft = pytest.importorskip("peft", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(base)
    model = peft.PeftModel.from_pretrained(model, folder).eval()
    active = [name for name in model.state_dict() if "lora_" in name]
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy(), active


@pytest.fixture
def tokenizer(dataset):
    return weights.load_tokenizer(str(dataset[0] / "tokenizer"))


@pytest.fixture
def adapted(tmp_path, tokenizer):
    """A model of a base on the disk, with adapters of different kinds in two layers."""
    base = tmp_path / "base"
    base.mkdir()
    huggingface.save(tiny_model(), tokenizer, base, tf.float32)
    model = weights.load(str(base))
    lora.attach(model, LoraConfig(3, 6.0, 0.1, "c_proj,h.1.attn.c_attn"), seed=5)
    for index, variable in enumerate(lora.adapters(model)):
        noise = tf.random.stateless_normal(variable.shape, [8, index], stddev=0.1)
        variable.assign_add(noise)
    return model


def test_peft_has_the_same_logits(adapted, tokenizer, tmp_path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapter.check(pretrained(adapted))
    adapter.save(pretrained(adapted), tokenizer, folder, tf.float32)
    values = json.loads((folder / "adapter_config.json").read_text())
    assert values["base_model_name_or_path"] == str(tmp_path / "base")
    theirs, active = in_peft(tmp_path / "base", folder)
    assert len(active) == 2 * 5
    ours = GPT2.as_transformers(adapted)(tf.constant(TOKENS, tf.int32)).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert np.abs(theirs - tiny_model()(tf.constant(TOKENS)).logits).max() > 0.1


def refusal(model, architecture=GPT2):
    with pytest.raises(UserError) as error:
        adapter.check(pretrained(model, architecture))
    return str(error.value)


def test_what_peft_could_not_open_is_refused(adapted):
    assert "Received: a model without LoRA" in refusal(tiny_model())
    assert "adapters of algpt2" in refusal(adapted, registry.get("algpt2"))
    base = weights.load(adapted.config.name_or_path)
    rows = [[row] for row in range(base.config.vocab_size)]
    resized = weights.resize_vocabulary(base, [*rows, [], []])
    lora.attach(resized, LoraConfig(2), 0)
    assert "a vocabulary of 99, where" in refusal(resized)
    random = tiny_model()
    lora.attach(random, LoraConfig(2), 0)
    assert "adapters of random weights" in refusal(random)


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory):
    """(folder with `base` and `run`, command that continues it): rank 8 on 4 x 256."""
    folder = tmp_path_factory.mktemp("lora")
    tokenizer = weights.load_tokenizer(str(small_run / "data" / "tokenizer"))
    shape = GPT2Config(
        vocab_size=len(tokenizer), n_positions=128, n_embd=256, n_layer=4, n_head=4
    )
    base = weights.build(shape)
    weights.initialize(base, seed=3)
    (folder / "base").mkdir()
    huggingface.save(base, tokenizer, folder / "base", tf.float32)
    command = (
        *("trainer.train", *SMALL, f"--data_dir={small_run / 'data'}"),
        *(f"--workdir={folder / 'run'}", "--num_virtual_devices=2"),
        f"--config.model.initial_checkpoint={folder / 'base'}",
        "--config.model.lora.rank=8",
        "--config.optimizer.learning_rate=0.01",
        "--config.training.precision=bfloat16",
        "--config.training.remat=block",
        "--config.tracking.sample_interval=6",
        "--config.tracking.sample_tokens=4",
        "--config.tracking.histograms=true",
    )
    succeed(*command)
    return folder, command


def succeed(*command):
    result = programs.run(*command)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
def test_a_run_with_lora_through_all_programs(trained, small_run, tmp_path):
    folder, command = trained
    run, data = folder / "run", f"--data_dir={small_run / 'data'}"
    last = run / "checkpoints" / "step-00000006" / "state.safetensors"
    state = last.read_bytes()
    # The adapters and AdamW's two moments, beside 13 MB of the base.
    num_values = 4 * 8 * (256 + 768)
    assert 3 * 4 * num_values < len(state) < 3 * 4 * num_values + 4_000
    assert (folder / "base" / "model.safetensors").stat().st_size > 30 * len(state)
    shutil.rmtree(last.parent)
    succeed(*command)
    assert last.read_bytes() == state

    of_run = f"--workdir={run}"
    for name in ("peft", "huggingface"):
        extra = (f"--format={name}", f"--output_dir={tmp_path / name}")
        succeed("trainer.export", of_run, *extra)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 128))
    theirs, active = in_peft(folder / "base", tmp_path / "peft", tokens)
    assert len(active) == 2 * 4
    merged = weights.load(str(tmp_path / "huggingface"))
    ours = merged(tf.constant(tokens, tf.int32)).logits
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    base = weights.load(str(folder / "base"))(tf.constant(tokens, tf.int32)).logits
    assert np.abs(ours - base).max() > 0.01

    losses = []
    for source in (of_run, f"--checkpoint={tmp_path / 'huggingface'}"):
        result = succeed(
            "trainer.evaluate", source, data, "--precision=float32", "--json"
        )
        losses.append(json.loads(result.stdout)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    prompt = ("--prompt=The", "--max_new_tokens=5", "--temperature=0")
    texts = [
        succeed("trainer.generate", source, *prompt).stdout
        for source in (of_run, f"--checkpoint={tmp_path / 'huggingface'}")
    ]
    assert texts[0] == texts[1]
    card = (tmp_path / "peft" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "Adapters of LoRA, which PEFT reads, for a GPT-2 with 3," in card
    page = tmp_path / "report.html"
    succeed("trainer.report", of_run, f"--output={page}")
    assert f"{num_values:,} trained" in page.read_text()


@pytest.mark.slow
def test_a_mistake_is_one_message(trained):
    _, command = trained
    for flag, phrase in (
        ("--config.model.lora.rank=300", "must not exceed the rows or columns"),
        ("--config.model.lora.rank=-1", "`model.lora.rank` must be at least 0"),
        ("--config.model.lora.alpha=0", "`model.lora.alpha` must be positive"),
        ("--config.model.lora.targets=q_proj", "Received: 'q_proj'. There are: trans"),
    ):
        assert_refused(programs.run(*command, flag), phrase)
    frozen = ("--config.model.lora.rank=0", "--config.training.trainable=!*")
    assert_refused(programs.run(*command, *frozen), "must leave something to train")
