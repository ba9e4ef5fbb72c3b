"""LoRA: adapters beside frozen projections, against their formula and PyTorch."""

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from configs.schema import LoraConfig, ModelConfig
from tests.conftest import tiny_model
from trainer.models import lora, registry
from trainer.models.architecture import DEFAULT_OPTIONS, Options
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.models.layers.dropout import NO_DROPOUT, Dropout
from trainer.models.layers.noise import row_keys

TOKENS = tf.random.uniform([2, 16], 0, 97, tf.int32, seed=1)
EVERYWHERE = "c_attn,c_proj,c_fc"


def adapted(targets=EVERYWHERE, dropout=0.0, rank=3, **shape):
    """A GPT-2 whose adapters all add something."""
    model = tiny_model(**shape)
    lora.attach(model, LoraConfig(rank, 6.0, dropout, targets), seed=5)
    for index, variable in enumerate(lora.adapters(model)):
        noise = tf.random.stateless_normal(variable.shape, [8, index], stddev=0.1)
        variable.assign_add(noise)
    return model


def logits(model, options=DEFAULT_OPTIONS, dropout=NO_DROPOUT, architecture=GPT2):
    hidden = architecture.hidden_states(model, TOKENS, options, dropout)
    hidden = tf.cast(hidden, tf.float32)
    return tf.matmul(hidden, architecture.output_table(model), transpose_b=True)


def test_fresh_adapters_change_nothing():
    model = tiny_model()
    before = logits(model)
    names = [variable.name for variable in model.variables]
    lora.attach(model, LoraConfig(4, targets=EVERYWHERE), seed=5)
    np.testing.assert_array_equal(logits(model), before)
    assert len(lora.adapters(model)) == 2 * 4 * 2
    assert [variable.name for variable in lora.base(model)] == names
    first = np.asarray(lora.adapters(model)[0])
    assert 0.15 < np.abs(first).max() <= 0.25  # uniform, up to 1 / sqrt(16)


@pytest.mark.parametrize("target", EVERYWHERE.split(","))
def test_a_cpus_layout_draws_the_same_dropout(target):
    model = adapted(target, dropout=0.5)
    keys = row_keys(2, tf.constant(7), tf.range(2))
    columns, rows = (
        logits(model, Options(on_cpu=on_cpu), Dropout(0.3, keys, fused=on_cpu))
        for on_cpu in (False, True)
    )
    np.testing.assert_allclose(rows, columns, atol=1e-5)


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("remat", ["none", "attention", "block"])
def test_an_adapter_adds_its_scaled_product(remat, on_cpu):
    model = adapted()
    by_hand = tiny_model()
    own = {lora.name_of(v): v for v in by_hand.variables}
    for name, layer in lora.projections(model).items():
        product = 2.0 * layer.adapter.down.numpy() @ layer.adapter.up.numpy()
        own[f"{name}.weight"].assign_add(product)
    mine, theirs = logits(model, Options(remat=remat, on_cpu=on_cpu)), logits(by_hand)
    np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert np.abs(mine - logits(tiny_model())).max() > 0.1


@pytest.mark.parametrize("on_cpu", [False, True])
@pytest.mark.parametrize("remat", ["none", "block"])
def test_gradients_are_those_of_the_merged_weights(remat, on_cpu):
    model = adapted()
    variables = lora.adapters(model)
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(variables)
        options = Options(remat=remat, on_cpu=on_cpu)
        loss = tf.reduce_sum(tf.square(logits(model, options)))
    mine = tape.gradient(loss, variables)
    merged = GPT2.as_transformers(model)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(logits(merged)))
    layers = lora.projections(model)
    names = [f"{name}.weight" for name in layers]
    own = {lora.name_of(v): v for v in merged.variables}
    whole = tape.gradient(loss, [own[name] for name in names])
    expected = []
    for layer, gradient in zip(layers.values(), whole, strict=True):
        adapter = layer.adapter
        expected.append(2.0 * gradient.numpy() @ adapter.up.numpy().T)
        expected.append(2.0 * adapter.down.numpy().T @ gradient.numpy())
    for gradient, by_hand in zip(mine, expected, strict=True):
        scale = np.abs(by_hand).max()
        np.testing.assert_allclose(gradient, by_hand, atol=1e-4 * scale)


def test_its_gpt2_computes_the_same_by_plain_weights():
    model = adapted()
    before = [variable.numpy() for variable in model.variables]
    gpt2 = GPT2.as_transformers(model)
    np.testing.assert_allclose(logits(model), gpt2(TOKENS).logits, atol=1e-5)
    assert len(gpt2.variables) == len(lora.base(model))
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
    assert GPT2.as_transformers(tiny_model()).built


def test_algpt2_has_adapters_too():
    algpt2 = registry.get("algpt2")
    shape = ModelConfig(
        n_layer=3, n_head=2, n_embd=16, n_positions=16, embedding_size=8
    )
    model = algpt2.build(algpt2.configure(shape, 97))
    algpt2.initialize(model, 1)
    lora.attach(model, LoraConfig(2, targets=EVERYWHERE), seed=5)
    for variable in lora.adapters(model):
        variable.assign_add(tf.fill(variable.shape, 0.05))
    theirs = algpt2.as_transformers(model)(TOKENS).logits
    np.testing.assert_allclose(logits(model, architecture=algpt2), theirs, atol=2e-5)


def test_dropout_of_the_adapters_is_a_function_of_the_row():
    """The same alone and in a batch; none in evaluation; each site its own."""
    model = adapted(dropout=0.5)
    keys = row_keys(0, tf.constant(3), tf.range(2))
    both = logits(model, dropout=Dropout(0.0, keys))
    again = logits(model, Options(remat="block"), Dropout(0.0, keys))
    np.testing.assert_allclose(both, again, atol=1e-6)
    hidden = GPT2.hidden_states(model, TOKENS[1:], dropout=Dropout(0.0, keys[1:]))
    alone = tf.matmul(hidden, GPT2.output_table(model), transpose_b=True)
    np.testing.assert_allclose(both[1:], alone, atol=1e-5)
    plain = logits(model)
    assert np.abs(both - plain).max() > 0.05
    np.testing.assert_allclose(plain, logits(GPT2.as_transformers(model)), atol=1e-5)
    other = logits(
        model, dropout=Dropout(0.0, row_keys(0, tf.constant(4), tf.range(2)))
    )
    assert np.abs(both - other).max() > 0.05


def test_no_two_places_share_their_noise(monkeypatch):
    sites = []
    drop = Dropout.__call__

    def record(self, x, site, *part, **of_whole):
        if self.rate:
            sites.append((site, self.rate))
        return drop(self, x, site, *part, **of_whole)

    monkeypatch.setattr(Dropout, "__call__", record)
    keys = row_keys(0, tf.constant(3), tf.range(2))
    logits(adapted(dropout=0.5), dropout=Dropout(0.1, keys))
    of_network = {site for site, rate in sites if rate == 0.1}
    of_adapters = {site for site, rate in sites if rate == 0.5}
    assert of_network == set(range(7))
    # Of the three parts of c_attn, each drops the same inputs.
    assert len(of_adapters) == 2 * 4
    assert not of_network & of_adapters


def test_targets_are_patterns():
    model = adapted(targets="h.1,!c_fc,!attn.c_proj")
    names = {v.name.partition("transformer/")[2] for v in lora.adapters(model)}
    assert names == {
        f"h_._1/{name}/lora_{matrix}:0"
        for name in ("attn/c_attn", "mlp/c_proj")
        for matrix in "ab"
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            LoraConfig(17),
            r"must not exceed .* 17, and transformer.h.0.attn.c_attn of \[16",
        ),
        (
            LoraConfig(2, targets="c_attn,q_proj"),
            r"'q_proj'\. There are: .*c_attn \(x 2",
        ),
        (LoraConfig(2, targets="!transformer"), "must leave something to train"),
    ],
)
def test_what_does_not_fit_is_one_message(settings, message):
    with pytest.raises(UserError, match=message):
        lora.attach(tiny_model(), settings, seed=0)
