"""XLNet against PyTorch: the same weights and masks, and what no prediction may see."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tokenizers
from transformers import GPT2TokenizerFast

from configs.errors import UserError
from configs.schema import ModelConfig
from tests import programs
from tests.conftest import SMALL, assert_refused
from trainer.exporting import huggingface
from trainer.generation.sampling import Sampler
from trainer.generation.settings import Settings
from trainer.models import registry
from trainer.models.architecture import Options
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.xlnet import weights

XLNET = registry.get("xlnet")
SHAPE = {"vocab_size": 61, "d_model": 24, "n_layer": 3, "n_head": 2, "d_inner": 40}
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 14))


@pytest.fixture(scope="module")
def judge():
    """PyTorch's model, every weight of which is random, biases and norms included."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import XLNetConfig, XLNetLMHeadModel

    torch.manual_seed(0)
    config = XLNetConfig(**SHAPE, dropout=0.0, initializer_range=0.3)
    model = XLNetLMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or "layer_norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module")
def folder(judge, tmp_path_factory):
    path = tmp_path_factory.mktemp("xlnet")
    judge.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return XLNET.load(str(folder))


def draw_masks():
    """Random masks; in the last row one target does not count."""
    generator = np.random.default_rng(1)
    unseen = generator.random((3, 14, 14)) < 0.5
    targets = np.zeros((3, 4, 14), bool)
    for row in range(3):
        for number, place in enumerate(generator.choice(14, 4, replace=False)):
            unseen[row, place, place] = targets[row, number, place] = True
            unseen[row, place, (place + 1) % 14] = False  # it sees something
    targets[2, 3] = False
    return unseen, targets


def logits(model, unseen, targets, options=None, dropout=NO_DROPOUT):
    states = XLNET.target_states(
        model,
        tf.constant(TOKENS, tf.int32),
        tf.constant(unseen),
        tf.constant(targets),
        options or Options(),
        dropout,
    )
    states = tf.cast(states, tf.float32)
    return tf.matmul(states, XLNET.output_table(model), transpose_b=True)


def judged(judge, unseen, targets):
    import torch

    labels = np.einsum("bpt,bt->bp", targets, TOKENS)
    labels[~targets.any(axis=2)] = -100
    return judge(
        torch.tensor(TOKENS),
        perm_mask=torch.tensor(unseen).float(),
        target_mapping=torch.tensor(targets).float(),
        labels=torch.tensor(labels),
    )


def summed_loss(model, unseen, targets, options=None):
    labels = np.einsum("bpt,bt->bp", targets, TOKENS)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels, logits(model, unseen, targets, options)
    )
    counts = targets.any(axis=2)
    return tf.reduce_sum(losses * counts) / counts.sum()


@pytest.mark.parametrize("remat", ["none", "attention", "block"])
def test_logits_loss_and_gradients_are_those_of_pytorch(model, judge, remat):
    unseen, targets = draw_masks()
    judge.zero_grad()
    expected = judged(judge, unseen, targets)
    expected.loss.backward()
    options = Options(remat=remat)
    found = logits(model, unseen, targets, options)
    np.testing.assert_allclose(found, expected.logits.detach(), atol=1e-4)
    with tf.GradientTape() as tape:
        loss = summed_loss(model, unseen, targets, options)
    assert float(loss) == pytest.approx(expected.loss.item(), abs=1e-5)
    theirs = dict(judge.named_parameters())
    variables = {n: v for n, v in model.by_name.items() if v.trainable}
    for (name, variable), gradient in zip(
        variables.items(), tape.gradient(loss, list(variables.values())), strict=True
    ):
        gradient = np.reshape(tf.convert_to_tensor(gradient), theirs[name].shape)
        scale = float(theirs[name].grad.abs().max())
        np.testing.assert_allclose(
            gradient, theirs[name].grad, atol=1e-4 * scale + 1e-7, err_msg=name
        )
        assert variable.shape.rank <= 2


def test_the_content_stream_is_that_of_pytorch(model, judge):
    torch = pytest.importorskip("torch")
    hidden = XLNET.hidden_states(model, tf.constant(TOKENS, tf.int32))
    found = tf.matmul(hidden, XLNET.output_table(model), transpose_b=True)
    with torch.no_grad():
        expected = judge(torch.tensor(TOKENS)).logits
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_bfloat16_is_float32_rounded(model):
    unseen, targets = draw_masks()
    exact = logits(model, unseen, targets)
    rounded = logits(model, unseen, targets, Options(precision="bfloat16"))
    assert 1e-3 < np.abs(exact - rounded).max() < 0.15 * np.abs(exact).max()


def test_dropout_depends_on_the_row_alone(model):
    """Compiled or not, and wherever the row stands."""
    masks = draw_masks()
    keys = tf.constant([1, 2, 3], tf.uint32)
    found = logits(model, *masks, dropout=Dropout(0.3, keys))
    again = logits(model, *masks, Options(remat="block"), Dropout(0.3, keys))
    np.testing.assert_allclose(found, again, atol=1e-5)
    others = logits(
        model, *masks, dropout=Dropout(0.3, tf.constant([9, 2, 9], tf.uint32))
    )
    different = np.abs(found - others).max(axis=(1, 2))
    assert different[1] < 1e-5
    assert min(different[[0, 2]]) > 0.1


@pytest.fixture(scope="module")
def tokenizer():
    """One token a word: `w5` is token 5."""
    vocabulary = {"<|endoftext|>": 0} | {f"w{index}": index for index in range(1, 61)}
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(vocabulary, unk_token="<|endoftext|>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return GPT2TokenizerFast(tokenizer_object=words, eos_token="<|endoftext|>")


def test_an_export_is_opened_by_pytorch_and_comes_back(model, tokenizer, tmp_path):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import XLNetLMHeadModel

    huggingface.save(XLNET.as_transformers(model), tokenizer, tmp_path, tf.float32, 0.1)
    opened = XLNetLMHeadModel.from_pretrained(tmp_path).eval()
    assert opened.config.dropout == 0.1
    unseen, targets = draw_masks()
    expected = judged(opened, unseen, targets).logits.detach()
    np.testing.assert_allclose(logits(model, unseen, targets), expected, atol=1e-4)
    loaded = registry.of_checkpoint(str(tmp_path)).load(str(tmp_path))
    for name, variable in loaded.by_name.items():
        np.testing.assert_array_equal(variable, model.by_name[name], err_msg=name)


def test_greedy_text_is_that_of_pytorch_whatever_stands_beside_it(
    model, judge, tokenizer
):
    import torch

    settings = Settings(max_new_tokens=6, temperature=0.0)
    padding = "w9 w8 w7 w6 w5 w4 w3"
    sampler = Sampler(
        XLNET, XLNET.as_transformers(model), tokenizer, settings, padding_text=padding
    )
    prompts = ["w1 w2 w3", "w11", "w60 w2 w17 w5 w4"]
    for prompt, (text,) in zip(prompts, sampler(prompts), strict=True):
        ids = tokenizer(f"{padding} <|endoftext|> {prompt}", return_tensors="pt")
        judge.config.use_mems_eval = False
        with torch.no_grad():
            new = judge.generate(
                ids["input_ids"],
                max_new_tokens=6,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=0,
            )[0, ids["input_ids"].shape[1] :]
        expected = tokenizer.decode(new, skip_special_tokens=True)
        assert text == f"{prompt} {expected}".strip()


def test_a_stop_text_ends_the_work(model, tokenizer, monkeypatch):
    settings = Settings(max_new_tokens=8, min_new_tokens=8, temperature=0.0)
    xlnet = XLNET.as_transformers(model)
    ((text,),) = Sampler(XLNET, xlnet, tokenizer, settings)(["w1 w2 w3"])
    words = text.split()
    stop = next(word for word in words[5:] if word not in words[:5])
    stopped = dataclasses.replace(settings, stop=(stop,))
    sampler = Sampler(XLNET, xlnet, tokenizer, stopped)
    lengths = []
    receive = sampler._receive
    monkeypatch.setattr(
        sampler, "_receive", lambda new: lengths.append(new) or receive(new)
    )
    ((cut,),) = sampler(["w1 w2 w3"])
    assert cut == text[: text.index(stop)]
    assert len(lengths) == sampler.num_generated < 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_type": "uni"}, "`attn_type` must be 'bi'. Received: 'uni'"),
        ({"clamp_len": 9}, "`clamp_len` must be -1"),
        ({"d_model": 25}, "`d_model` must be a multiple of `n_head`"),
        ({"d_inner": 0}, "`d_inner` must be a positive integer"),
        ({"d_model": 21, "n_head": 3}, r"must be even: .* Received: 21. Use 22"),
        ({"ff_activation": "maxout"}, "`ff_activation` must be one of"),
        ({"dropout": 1.5}, "`dropout` must be a number from 0 to 1"),
        ({"model_type": "gpt2"}, "`model_type` must be 'xlnet'"),
        ({"d_inner": 41}, r"ff.layer_1.weight is \[40, 24\], not \[41, 24\]"),
        ({"n_layer": 4}, "Missing: transformer.layer.3"),
    ],
)
def test_another_network_is_refused_in_one_message(folder, tmp_path, change, message):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        XLNET.load(str(tmp_path))


def test_new_tokens_begin_as_the_mean(model):
    rows = [[row] for row in range(61)]
    extended = XLNET.resize_vocabulary(model, [*rows, [], [3, 4]])
    assert extended.config.vocab_size == 63
    for name in (weights.TABLE, weights.BIAS):
        old, new = model.by_name[name].numpy(), extended.by_name[name].numpy()
        np.testing.assert_array_equal(new[:61], old)
        np.testing.assert_allclose(new[61:], [old.mean(0), old[3:5].mean(0)], atol=1e-6)


def test_shapes_and_flops_of_the_base_model():
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNET.configure(ModelConfig(), 32000)
    shape = {"d_model": 768, "n_layer": 12, "n_head": 12, "d_inner": 3072}
    with torch.device("meta"):
        theirs = XLNetLMHeadModel(XLNetConfig(vocab_size=32000, **shape))
    expected = {name: tuple(p.shape) for name, p in theirs.named_parameters()}
    assert weights.shapes(config) == expected
    # Of 12 C^2 weights of a layer and token, a target needs the 10 C^2 of no key.
    products = 12 * 768**2 * (512 * 12 + 85 * 10)
    scores = 12 * 768 * 512 * (512 + 85) * 4
    flops = 3 * 2 * (products + scores + 85 * 768 * 32000)
    assert XLNET.step_flops(config, 512, 1) == flops


@pytest.mark.slow
def test_it_trains_resumes_samples_evaluates_and_is_exported(small_run, tmp_path):
    """The same bytes, whether or not the run is stopped in between."""
    run, data = tmp_path / "run", f"--data_dir={small_run / 'data'}"
    train = [
        *("trainer.train", *SMALL, data, f"--workdir={run}"),
        "--config.model.architecture=xlnet",
        "--config.training.task=permutation_lm",
        "--config.training.dropout=0.1",
        "--config.training.precision=bfloat16",
        "--config.tracking.sample_interval=6",
        "--config.tracking.sample_tokens=4",
        "--config.tracking.sample_prompt=The quick",
        "--config.tracking.sample_padding_text=The lazy dog.",
        "--num_virtual_devices=2",
    ]
    succeed(*train)
    samples = [json.loads(line) for line in (run / "samples.jsonl").open()]
    assert [sample["step"] for sample in samples] == [0, 6]
    last = run / "checkpoints" / "step-00000006" / "state.safetensors"
    state = last.read_bytes()
    shutil.rmtree(last.parent)
    succeed(*train)
    assert last.read_bytes() == state

    text = succeed("trainer.generate", f"--workdir={run}", "--prompt=The quick")
    assert "The quick" in text.stdout
    assert "lazy dog." not in text.stdout
    evaluate = ("trainer.evaluate", data, "--precision=float32", "--json")
    own = json.loads(succeed(*evaluate, f"--workdir={run}").stdout)
    assert own["published"] == []
    assert "not a left-to-right perplexity" in own["objective"]
    assert own["targets_scored"] < own["tokens"] / 5.5
    export = f"--output_dir={tmp_path / 'xlnet'}"
    succeed("trainer.export", f"--workdir={run}", export)
    assert "# run\n\nXLNet with" in (tmp_path / "xlnet" / "README.md").read_text()
    result = json.loads(succeed(*evaluate, f"--checkpoint={tmp_path / 'xlnet'}").stdout)
    assert result["loss"] == pytest.approx(own["loss"], abs=1e-6)
    served = (f"--output_dir={tmp_path / 'served'}", "--format=saved_model")
    refused = programs.run("trainer.export", f"--workdir={run}", *served)
    assert_refused(refused, "needs a model whose generation can be compiled")


@pytest.mark.slow
def test_a_task_that_the_architecture_has_not_is_one_message(small_run, tmp_path):
    for architecture, task in (("xlnet", "causal_lm"), ("gpt2", "permutation_lm")):
        process = programs.run(
            *("trainer.train", *SMALL, f"--data_dir={small_run / 'data'}"),
            f"--workdir={tmp_path / architecture}",
            f"--config.model.architecture={architecture}",
            f"--config.training.task={task}",
        )
        assert_refused(process, f"`model.architecture={architecture}`", "Use")


def succeed(*command):
    result = programs.run(*command)
    assert result.returncode == 0, result.stderr
    return result
