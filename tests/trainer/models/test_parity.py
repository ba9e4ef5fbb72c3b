"""PyTorch as an independent judge: the same weights, batches and optimizer."""

import numpy as np
import pytest
import tensorflow as tf

from configs.schema import OptimizerConfig
from tests.conftest import VOCABULARY_SIZE, tiny_model, training_step
from tests.trainer.models.test_weights import pytorch_folder
from trainer.models.gpt2 import costs, forward, weights
from trainer.optimizers import factory
from trainer.optimizers.schedule import Schedule

torch = pytest.importorskip("torch", reason="needs the extra `parity`")
pytest.importorskip("torch.utils.flop_counter")


@pytest.fixture
def both(tmp_path):
    """(TensorFlow model, PyTorch model) of the same weights; 2 layers of 64."""
    from transformers import GPT2LMHeadModel

    shape = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 32}
    gpt2 = tiny_model(**shape)
    folder = pytorch_folder(tmp_path / "hf", gpt2)
    judge = GPT2LMHeadModel.from_pretrained(folder).float()
    return weights.load(folder), judge


def batches(count):
    generator = np.random.default_rng(0)
    # Few ids, so that 20 steps have something to learn.
    return generator.integers(0, VOCABULARY_SIZE // 8, (count, 8, 32))


def test_logits_agree(both):
    ours, judge = both
    tokens = batches(1)[0]
    with torch.no_grad():
        expected = judge.eval()(torch.tensor(tokens)).logits.numpy()
    hidden = forward.hidden_states(ours, tf.constant(tokens))
    found = tf.matmul(hidden, forward.output_table(ours), transpose_b=True)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_twenty_adamw_steps_agree(both):
    ours, judge = both
    task = training_step(ours, accumulation_steps=4)
    config = OptimizerConfig(
        name="adamw",
        learning_rate=1e-3,
        schedule="constant",
        warmup_fraction=0.0,
        weight_decay=0.1,
    )
    schedule = Schedule(config, num_steps=20)
    task.compile(optimizer=factory.create(config, schedule, ours.trainable_variables))
    step = tf.function(task.train_step)

    groups = [
        {"params": [p for p in judge.parameters() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in judge.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    their_rule = torch.optim.AdamW(groups, lr=1e-3, eps=1e-8)
    judge.eval()  # no dropout, as in ours
    losses, expected = [], []
    for tokens in batches(20):
        length = tf.fill([8], 32)
        batch = {"tokens": tf.constant(tokens, tf.int32), "length": length}
        logs = step({**batch, "row": tf.range(8)})
        losses.append(float(logs["loss"]))
        loss = judge(torch.tensor(tokens), labels=torch.tensor(tokens)).loss
        expected.append(loss.item())
        their_rule.zero_grad()
        loss.backward()
        their_rule.step()
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    assert losses[-1] < 0.8 * losses[0]  # something was learnt


def test_flops_are_those_that_pytorch_counts(both):
    ours, judge = both
    tokens = torch.tensor(batches(1)[0])
    judge.set_attn_implementation("eager")
    FlopCounterMode = torch.utils.flop_counter.FlopCounterMode  # noqa: N806
    with FlopCounterMode(display=False) as counter:
        judge(tokens, labels=tokens).loss.backward()
    # PyTorch multiplies all pairs of tokens; the mask then hides some.
    shape, (num, length) = ours.config, tokens.shape
    hidden = length * length - length * (length + 1) // 2
    hidden_flops = 3 * num * shape.n_layer * 4 * hidden * shape.n_embd
    expected = counter.get_total_flops() - hidden_flops
    assert costs.step_flops(shape, length, num) == expected
