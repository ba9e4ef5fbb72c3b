"""Muon against PyTorch's, and its iteration against optax's and the exact result."""

import numpy as np
import pytest
import tensorflow as tf

from configs.errors import UserError
from configs.schema import ModelConfig, OptimizerConfig
from tests.conftest import VOCABULARY_SIZE, tiny_model, training_step
from trainer.models import registry
from trainer.models.variables import name_of, num_bytes
from trainer.optimizers import factory, muon
from trainer.optimizers.schedule import Schedule
from trainer.runtime.strategy import mirror_cpu

STEPS = 5
RATE, WEIGHT_DECAY = 0.02, 0.1
# Wide, tall, square, three side by side, and what is AdamW's.
SHAPES = {
    "transformer/h_._0/mlp/c_fc/weight": (8, 32),
    "transformer/h_._0/mlp/c_proj/weight": (32, 8),
    "transformer/h_._0/attn/c_proj/weight": (8, 8),
    "transformer/h_._0/attn/c_attn/weight": (8, 24),
    "transformer/h_._0/attn/c_attn/bias": (1, 24),
    "transformer/wte/weight": (40, 8),
}
MATRICES = list(SHAPES)[:4]


def values(seed):
    generator = np.random.default_rng(seed)
    return {n: generator.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def create(variables, **fields):
    config = OptimizerConfig(
        name="muon",
        learning_rate=RATE,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=WEIGHT_DECAY,
        **fields,
    )
    return factory.create(config, Schedule(config, STEPS), variables)


def run_ours():
    variables = {n: tf.Variable(v, name=n) for n, v in values(0).items()}
    rule = create(list(variables.values()))
    for step in range(1, STEPS + 1):
        gradients = values(step)
        rule.apply_gradients([(gradients[n], v) for n, v in variables.items()])
    return {name: variable.numpy() for name, variable in variables.items()}


def run_torch(torch):
    """Trains the same by torch.optim; queries, keys and values are three parameters."""
    parts = {name: 3 if "c_attn/weight" in name else 1 for name in SHAPES}

    def split(arrays, name):
        pieces = np.split(arrays[name], parts[name], axis=1)
        return [torch.tensor(piece.copy()) for piece in pieces]

    parameters = {
        n: [torch.nn.Parameter(p) for p in split(values(0), n)] for n in SHAPES
    }
    ours = torch.optim.Muon(
        [p for name in MATRICES for p in parameters[name]],
        lr=RATE,
        weight_decay=WEIGHT_DECAY,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = {"lr": RATE, "betas": (0.9, 0.999), "eps": 1e-8}
    rules = [
        ours,
        torch.optim.AdamW(
            parameters["transformer/wte/weight"], **adam, weight_decay=WEIGHT_DECAY
        ),
        torch.optim.AdamW(
            parameters["transformer/h_._0/attn/c_attn/bias"], **adam, weight_decay=0
        ),
    ]
    for step in range(1, STEPS + 1):
        for name, pieces in parameters.items():
            for piece, gradient in zip(pieces, split(values(step), name), strict=True):
                piece.grad = gradient
        for rule in rules:
            rule.step()
    return {
        name: np.concatenate([p.detach().numpy() for p in pieces], axis=1)
        for name, pieces in parameters.items()
    }


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 0.1)]
)
def test_equals_pytorch(precision, tolerance, monkeypatch):
    """The distance is measured by how far the weights have moved."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    if precision == "float32":
        monkeypatch.setattr(muon, "DTYPE", tf.float32)
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    ours, theirs = run_ours(), run_torch(torch)
    for name, start in values(0).items():
        moved = np.linalg.norm(theirs[name] - start)
        assert moved > 0.1
        assert np.linalg.norm(ours[name] - theirs[name]) < tolerance * moved, name


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_the_iteration_equals_optax(shape, monkeypatch):
    jnp = pytest.importorskip("jax.numpy", reason="needs the extra `parity`")
    module = pytest.importorskip("optax.contrib._muon", reason="needs `parity`")
    monkeypatch.setattr(muon, "DTYPE", tf.float32)
    matrices = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    coefficients = jnp.array(muon.COEFFICIENTS)
    ours = muon.orthogonalize(tf.constant(matrices))
    for matrix, result in zip(matrices, ours, strict=True):
        theirs = module.orthogonalize_via_newton_schulz(matrix, coefficients)
        np.testing.assert_allclose(result, theirs, atol=1e-5)


def test_singular_values_end_near_one():
    """Jordan's bounds for five iterations; and the vectors stay."""
    matrix = np.random.default_rng(1).normal(size=(1, 16, 40)).astype(np.float32)
    result = muon.orthogonalize(tf.constant(matrix)).numpy()[0]
    left, _, right = np.linalg.svd(matrix[0], full_matrices=False)
    assert (
        0.65 < np.linalg.svd(result)[1].min() <= np.linalg.svd(result)[1].max() < 1.25
    )
    cosine = (result * (left @ right)).sum() / np.linalg.norm(result) / 4  # 4: sqrt(16)
    assert cosine > 0.98


def train(monkeypatch, num_replicas, accumulation_steps):
    """Returns the weights after a step on 16 records, and the optimizer's state."""
    monkeypatch.setattr(muon, "DTYPE", tf.float32)
    generator, strategy = np.random.default_rng(5), mirror_cpu(num_replicas)
    tokens = generator.integers(0, VOCABULARY_SIZE, (16, 8)).astype(np.int32)
    rows = np.arange(16, dtype=np.int32)
    batch = {"tokens": tokens, "length": np.full(16, 8, np.int32), "row": rows}
    with strategy.scope():
        gpt2 = tiny_model(n_layer=1)
        step = training_step(gpt2, accumulation_steps=accumulation_steps)
        step.compile(optimizer=create(gpt2.trainable_variables))
    size = 16 // num_replicas

    def part(context):
        first = context.replica_id_in_sync_group * size
        return {k: tf.constant(v[first : first + size]) for k, v in batch.items()}

    train_step = tf.function(step.train_step)
    strategy.run(
        train_step, [strategy.experimental_distribute_values_from_function(part)]
    )
    variables = [*gpt2.trainable_variables, *step.optimizer.variables]
    copies = [strategy.experimental_local_results(v) for v in variables]
    for replicas in copies:
        for copy in replicas[1:]:
            np.testing.assert_array_equal(copy, replicas[0])
    return [replicas[0].numpy() for replicas in copies]


@pytest.mark.slow
def test_replicas_and_accumulation_change_nothing(monkeypatch):
    whole = train(monkeypatch, 1, 1)
    for split, expected in zip(train(monkeypatch, 4, 2), whole, strict=True):
        # AdamW divides by gradients, of which some are tiny: 1 % of a step.
        np.testing.assert_allclose(split, expected, atol=0.01 * RATE)


def test_adapters_are_matrices_of_blocks(monkeypatch):
    """Of c_attn, only what makes its columns is three matrices; a rank of 3 is not."""
    monkeypatch.setattr(muon, "DTYPE", tf.float32)
    scope = "transformer/h_._0/attn/c_attn"
    down, up = (
        tf.Variable(values(0)[f"{scope}/weight"][:rows, :columns], name=name)
        for name, rows, columns in (
            (f"{scope}/lora_a", 8, 3),
            (f"{scope}/lora_b", 3, 24),
        )
    )
    before = down.numpy(), up.numpy()
    rule = create([down, up])
    rule.apply_gradients([(before[0], down), (before[1], up)])
    updates = [
        v.numpy() - (1 - RATE * WEIGHT_DECAY) * old
        for v, old in zip((down, up), before, strict=True)
    ]
    expected = [
        tf.concat([*muon.orthogonalize(tf.stack(parts))], 1)
        for parts in ([before[0]], np.split(before[1], 3, axis=1))
    ]
    for update, direction in zip(updates, expected, strict=True):
        np.testing.assert_allclose(
            update, -RATE * 0.2 * np.sqrt(8) * direction, atol=1e-6
        )


def test_without_a_matrix_of_a_block_it_is_refused():
    with pytest.raises(UserError, match="must have a matrix of a block"):
        create([tf.Variable(values(0)["transformer/wte/weight"], name="wte/weight")])


def test_a_matrix_without_gradient_stays():
    assert not np.any(muon.orthogonalize(tf.zeros([1, 4, 6])))


OF_GPT2 = {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}
OF_BLOCKS = {
    "gpt2": OF_GPT2,
    "algpt2": OF_GPT2,
    "xlnet": {"rel_attn." + n for n in "qkvor"} | {"ff.layer_1", "ff.layer_2"},
}


@pytest.mark.parametrize("architecture", registry.MODULES)
def test_only_matrices_of_blocks_are_orthogonalized(architecture):
    """A new architecture must say here which are its own."""
    expected = OF_BLOCKS[architecture]
    shape = registry.get(architecture)
    config = ModelConfig(
        n_layer=2, n_embd=8, n_head=2, n_positions=16, embedding_size=4
    )
    model = shape.build(shape.configure(config, 20, bos_token_id=0, eos_token_id=0))
    variables = model.trainable_variables
    hidden = [name_of(v) for v in variables if muon.is_hidden_matrix(v)]
    assert len(hidden) == len(expected) * (1 if architecture == "algpt2" else 2)
    ends = {".".join(n.removesuffix(".weight").split(".")[-2:]) for n in hidden}
    assert ends == expected
    # One value for each of a hidden matrix, two for all others, and the step.
    rest = [v for v in variables if not muon.is_hidden_matrix(v)]
    slots = [v for v in create(variables).variables if v.shape.rank]
    hidden_bytes = num_bytes(filter(muon.is_hidden_matrix, variables))
    assert num_bytes(slots) == hidden_bytes + 2 * num_bytes(rest)
