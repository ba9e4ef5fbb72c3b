"""ALGPT2: one block for all layers, against the GPT-2 that it is exported as."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from configs.schema import ModelConfig
from tests import programs
from tests.conftest import SMALL, tiny_model
from trainer.exporting import huggingface
from trainer.models import registry
from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.gpt2 import forward as gpt2_forward
from trainer.models.layers.dropout import NO_DROPOUT, Dropout

ALGPT2 = registry.get("algpt2")
SHAPE = ModelConfig(
    architecture="algpt2",
    n_layer=3,
    n_head=2,
    n_embd=160,
    n_positions=32,
    embedding_size=96,  # not the default
)


@pytest.fixture(scope="module")
def tokenizer(small_run):
    return ALGPT2.load_tokenizer(str(small_run / "data" / "tokenizer"))


@pytest.fixture(scope="module")
def model(tokenizer):
    config = ALGPT2.configure(SHAPE, len(tokenizer))
    assert config.embedding_size == 96
    model = ALGPT2.build(config)
    ALGPT2.initialize(model, seed=1)
    for index, variable in enumerate(model.variables):  # biases, too
        noise = tf.random.stateless_normal(variable.shape, [7, index], stddev=0.05)
        variable.assign_add(noise)
    return model


def logits(module, model, tokens, options=DEFAULT_OPTIONS, dropout=NO_DROPOUT):
    hidden = module.hidden_states(model, tokens, options, dropout)
    hidden = tf.cast(hidden, tf.float32)
    return tf.matmul(hidden, module.output_table(model), transpose_b=True)


def test_parameters_of_the_small_shape():
    config = ALGPT2.configure(ModelConfig(), 50257)
    model = ALGPT2.build(config)
    assert sum(tf.size(v).numpy() for v in model.variables) == 14_407_040


@pytest.mark.parametrize("remat", ["none", "attention", "block"])
def test_it_computes_what_its_gpt2_computes(model, remat):
    tokens = tf.random.uniform([2, 32], 0, 90, tf.int32, seed=1)
    mine = logits(ALGPT2, model, tokens, Options(remat=remat))
    theirs = ALGPT2.as_transformers(model)(tokens).logits
    np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_the_gradient_is_the_sum_over_the_layers(model):
    tokens = tf.random.uniform([2, 32], 0, 90, tf.int32, seed=1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(logits(ALGPT2, model, tokens)))
    mine = tape.gradient(loss, model.block.variables)
    gpt2 = ALGPT2.as_transformers(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(logits(gpt2_forward, gpt2, tokens)))
    layers = [layer.variables for layer in gpt2.transformer.h]
    for number, (gradient, variables) in enumerate(
        zip(mine, zip(*tape.gradient(loss, layers), strict=True), strict=True)
    ):
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(
            gradient, sum(variables), atol=1e-4 * scale, err_msg=str(number)
        )


def test_each_layer_has_the_dropout_of_gpt2(model):
    tokens = tf.random.uniform([2, 32], 0, 90, tf.int32, seed=1)
    dropout = Dropout(0.5, tf.constant([1, 2], tf.uint32))
    mine = logits(ALGPT2, model, tokens, dropout=dropout)
    gpt2 = ALGPT2.as_transformers(model)
    theirs = logits(gpt2_forward, gpt2, tokens, dropout=dropout)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert not np.allclose(mine, logits(ALGPT2, model, tokens), atol=0.1)


def test_pytorch_opens_the_export(model, tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel

    huggingface.save(ALGPT2.as_transformers(model), tokenizer, tmp_path, tf.float32)
    judge = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    tokens = tf.random.uniform([2, 32], 0, 90, tf.int32, seed=1)
    with torch.no_grad():
        theirs = judge(torch.tensor(tokens.numpy()).long()).logits.numpy()
    np.testing.assert_allclose(logits(ALGPT2, model, tokens), theirs, atol=1e-4)


def test_an_export_comes_back(model, tokenizer, tmp_path):
    huggingface.save(ALGPT2.as_transformers(model), tokenizer, tmp_path, tf.float32)
    loaded = ALGPT2.load(str(tmp_path))
    tokens = tf.random.uniform([2, 32], 0, 90, tf.int32, seed=1)
    np.testing.assert_allclose(
        logits(ALGPT2, loaded, tokens), logits(ALGPT2, model, tokens), atol=1e-4
    )


def test_a_gpt2_with_layers_of_its_own_is_refused(model, tokenizer, tmp_path):
    gpt2 = ALGPT2.as_transformers(model)
    gpt2.transformer.h[2].ln_1.beta.assign_add(tf.ones([160]))
    huggingface.save(gpt2, tokenizer, tmp_path, tf.float32)
    with pytest.raises(UserError, match=r"layers of .* must be equal"):
        ALGPT2.load(str(tmp_path))


def test_an_embedding_wider_than_the_model_is_refused():
    wide = dataclasses.replace(SHAPE, embedding_size=161)
    with pytest.raises(UserError, match=r"at most `model\.n_embd`. Received: 161"):
        ALGPT2.configure(wide, 300)


def test_a_gpt2_that_was_never_an_algpt2_is_refused(tokenizer, tmp_path):
    gpt2 = tiny_model(vocab_size=len(tokenizer))
    huggingface.save(gpt2, tokenizer, tmp_path, tf.float32)
    with pytest.raises(UserError, match="must have the `embedding_size`"):
        ALGPT2.load_configuration(str(tmp_path))


def test_an_embedding_of_full_rank_is_refused(model, tokenizer, tmp_path):
    gpt2 = ALGPT2.as_transformers(model)
    embedding = gpt2.transformer.wte.embeddings
    embedding.assign(tf.random.stateless_normal(embedding.shape, [1, 2]))
    huggingface.save(gpt2, tokenizer, tmp_path, tf.float32)
    with pytest.raises(UserError, match="must be a product"):
        ALGPT2.load(str(tmp_path))


def test_new_tokens_begin_as_the_mean(model):
    size = model.config.vocab_size
    rows = [[index] for index in range(size)]
    extended = ALGPT2.resize_vocabulary(model, [*rows, [], []])
    mean = np.mean(model.table, axis=0)
    np.testing.assert_allclose(extended.table[size:], [mean] * 2, atol=1e-6)
    np.testing.assert_array_equal(extended.table[:size], model.table)
    np.testing.assert_array_equal(extended.positions, model.positions)


def test_flops_are_those_of_the_products():
    config = ALGPT2.configure(ModelConfig(), 50257)
    gpt2 = registry.get("gpt2")
    theirs = gpt2.step_flops(gpt2.configure(ModelConfig(), 50257), 1024, 1)
    assert ALGPT2.step_flops(config, 1024, 1) / theirs == pytest.approx(0.76, abs=0.01)


@pytest.mark.slow
def test_it_trains_resumes_samples_and_is_exported(small_run, tmp_path):
    """The same bytes, whether or not the run is stopped in between."""
    run, data = tmp_path / "run", f"--data_dir={small_run / 'data'}"
    train = [
        *("trainer.train", *SMALL, data, f"--workdir={run}"),
        "--config.model.architecture=algpt2",
        "--config.model.embedding_size=16",
        "--config.model.n_layer=2",
        "--config.tracking.sample_interval=6",
        "--config.tracking.sample_tokens=4",
    ]
    succeed(*train)
    assert len((run / "samples.jsonl").read_text().splitlines()) == 2
    last = run / "checkpoints" / "step-00000006" / "state.safetensors"
    state = last.read_bytes()
    shutil.rmtree(last.parent)
    succeed(*train)
    assert last.read_bytes() == state
    succeed("trainer.evaluate", f"--workdir={run}", data)
    succeed("trainer.export", f"--workdir={run}", f"--output_dir={tmp_path / 'gpt2'}")
    result = succeed("trainer.evaluate", f"--checkpoint={tmp_path / 'gpt2'}", data)
    own = json.loads(next((run / "evaluations").iterdir()).read_text())
    assert f"{own['loss']:.4f}" in result.stdout


def succeed(*command):
    result = programs.run(*command)
    assert result.returncode == 0, result.stderr
    return result
