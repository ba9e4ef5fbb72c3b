"""Completions: what bears loss, against PyTorch; exact match, against decoding."""

import json

import numpy as np
import pytest
import tensorflow as tf

from configs import schema as config_schema
from configs.errors import DataError
from configs.schema import DataConfig, TrainingConfig
from data_pipeline.job import plan_job
from data_pipeline.pipeline import preprocess
from data_pipeline.tokens import completions
from tests.conftest import tiny_config, tiny_model
from tests.data_pipeline.runs import in_process
from tests.trainer.checkpoints.test_run_checkpoints import compile_nothing
from tests.trainer.tasks.test_classification import manifest_of
from trainer.checkpoints import pretrained
from trainer.evaluation.evaluator import evaluate
from trainer.models import variables
from trainer.models.architecture import DEFAULT_OPTIONS
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.run_dir import metrics
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.tasks import causal_lm, permutation_lm
from trainer.training.loop import train

#         prompt     completion  prompt    completion    padding
MASK = [[0, 0, 0, 1, 1, 1, 0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1]]
LENGTH = [10, 12]


@pytest.fixture(scope="module")
def batch():
    tokens = np.random.default_rng(0).integers(0, 97, [2, 12])
    values = {"tokens": tokens, "length": LENGTH, "mask": MASK, "first": [1, 1]}
    return {name: tf.constant(value, tf.int32) for name, value in values.items()}


@pytest.mark.parametrize("turns", [False, True])
def test_loss_and_gradient_are_those_of_pytorch_without_the_prompts(batch, turns):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2Config, GPT2LMHeadModel

    model = tiny_model()
    values = {variables.name_of(v): v.numpy() for v in model.variables}
    judge = GPT2LMHeadModel(GPT2Config.from_dict(model.config.to_dict())).eval()
    parameters = dict(judge.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.tensor(values[name].reshape(parameter.shape)))
    tokens = torch.tensor(batch["tokens"].numpy()).long()
    if turns:  # of a conversation
        mask = np.array(MASK)
        mask[:, :6] *= completions.EARLIER_TURN
        batch = {**batch, "mask": tf.constant(mask, tf.int32)}
    labels = torch.where(torch.tensor(MASK) > 0, tokens, -100)
    judge(tokens, labels=labels).loss.backward()
    with tf.GradientTape() as tape:
        loss, weight = causal_lm.summed_loss(GPT2, model, batch)
        mean = loss / weight
    assert weight == sum(map(sum, MASK))
    for variable, ours in zip(
        model.variables, tape.gradient(mean, model.variables), strict=True
    ):
        theirs = parameters[variables.name_of(variable)].grad.numpy()
        np.testing.assert_allclose(
            np.reshape(ours, theirs.shape), theirs, atol=2e-5, err_msg=variable.name
        )


def test_masked_tokens_carry_no_gradient(batch):
    """Of the hidden states, those before a completion's token alone get one."""
    model = tiny_model()
    hidden = tf.Variable(GPT2.hidden_states(model, batch["tokens"]))
    architecture = GPT2.__class__(
        **{**vars(GPT2), "hidden_states": lambda *_: tf.convert_to_tensor(hidden)}
    )
    with tf.GradientTape() as tape:
        loss, _ = causal_lm.summed_loss(architecture, model, batch)
    has_gradient = np.abs(tape.gradient(loss, hidden)).max(axis=2) > 0
    before = np.pad(np.array(MASK)[:, 1:], [[0, 0], [0, 1]]) > 0
    np.testing.assert_array_equal(has_gradient, before)


def test_exact_matches_are_what_greedy_decoding_writes(batch):
    """By hand: one completion is made right, one but for a token, one by chance."""
    model = tiny_model()
    tokens = batch["tokens"].numpy().copy()

    def write(row, start, stop):
        for place in range(start, stop):
            states = GPT2.hidden_states(model, tf.constant(tokens[row : row + 1]))
            logits = tf.linalg.matvec(GPT2.output_table(model), states[0, place - 1])
            tokens[row, place] = np.argmax(logits)

    write(0, 3, 6)
    write(1, 7, 12)
    tokens[1, 9] = (tokens[1, 9] + 1) % 97
    right = {**batch, "tokens": tf.constant(tokens)}
    sums = causal_lm.evaluation_sums(GPT2, model, right, DEFAULT_OPTIONS)
    assert (sums["completion_count"], sums["exact_count"]) == (4, 1)
    assert sums["token_count"] == sum(map(sum, MASK))
    assert causal_lm.figures(sums)["exact_match"] == 0.25
    write(1, 7, 12)
    right = {**batch, "tokens": tf.constant(tokens)}
    sums = causal_lm.evaluation_sums(GPT2, model, right, DEFAULT_OPTIONS)
    assert sums["exact_count"] == 2


def test_earlier_turns_of_a_conversation_bear_loss_and_are_no_completions(batch):
    """With the last exchange of each record alone as the completion."""
    model = tiny_model()
    turns = np.array(MASK)
    turns[0, :6] *= 2
    turns[1, :4] *= 2
    conversation = {**batch, "mask": tf.constant(turns, tf.int32)}
    sums, expected = (
        causal_lm.evaluation_sums(GPT2, model, part, DEFAULT_OPTIONS)
        for part in (conversation, batch)
    )
    assert (sums["completion_count"], expected["completion_count"]) == (2, 4)
    for name in ("loss_sum", "token_count"):
        assert sums[name] == expected[name]
    states = GPT2.hidden_states(model, batch["tokens"])
    logits = tf.einsum("btc,vc->btv", states, GPT2.output_table(model)).numpy()
    tokens = batch["tokens"].numpy().copy()
    tokens[0, 8:10] = np.argmax(logits[0, 7]), 0  # the second is read after the first
    states = GPT2.hidden_states(model, tf.constant(tokens))
    logits = tf.einsum("btc,vc->btv", states, GPT2.output_table(model)).numpy()
    tokens[0, 9] = np.argmax(logits[0, 8])
    right = {**conversation, "tokens": tf.constant(tokens)}
    sums = causal_lm.evaluation_sums(GPT2, model, right, DEFAULT_OPTIONS)
    assert sums["exact_count"] == 1


def test_a_run_reads_the_mask_only_where_there_is_one():
    plain = causal_lm.TASK.resolve(TrainingConfig(), manifest_of({}, mode="document"))
    assert plain is causal_lm.TASK
    masked = manifest_of({}, mode="completion")
    task = causal_lm.TASK.resolve(TrainingConfig(), masked)
    assert task.signature(2, 8)["mask"].shape == (2, 8)
    assert task.memorization is None
    with pytest.raises(DataError, match="a dataset of mode completion"):
        permutation_lm.TASK.resolve(TrainingConfig(), masked)


def write_words(path, num):
    """Made-up words, and the same from the last letter to the first."""
    generator = np.random.default_rng(0)
    words = {
        "".join(generator.choice([*"abcdefgh"], generator.integers(3, 6)))
        for _ in range(num)
    }
    rows = [{"prompt": f"{word}>", "completion": word[::-1]} for word in sorted(words)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@pytest.mark.slow
def test_a_model_learns_to_reverse_a_word(tmp_path, monkeypatch):
    compile_nothing(monkeypatch)  # a small model is faster without
    config = config_schema.Config(
        data=DataConfig(
            input=write_words(tmp_path / "words.jsonl", 9000),
            mode="completion",
            tokenizer="train",
            vocab_size=257,
            sequence_length=12,
        ),
        model=config_schema.ModelConfig(n_layer=2, n_head=4, n_embd=64, n_positions=12),
        optimizer=config_schema.OptimizerConfig(
            name="adamw", learning_rate=1e-3, warmup_steps=50
        ),
        training=tiny_config(
            num_steps=400,
            evaluation_interval=100,
            global_batch_size=64,
            microbatch_size=64,
            dropout=0.0,
            steps_per_execution=50,
        ).training,
    )
    data = str(tmp_path / "data")
    preprocess(plan_job(config), data, in_process)
    strategy = mirror_cpu(1)
    train(config, data, str(tmp_path / "run"), Cluster(strategy))
    last = metrics.load(str(tmp_path / "run"))[-1]
    with strategy.scope():
        trained = pretrained.load(str(tmp_path / "run"), 0, "")
    (found,) = evaluate(trained, strategy, data, split="validation", batch_size=64)
    assert found["exact_match"] == pytest.approx(last["validation_exact_match"])
    assert found["exact_match"] >= 0.95
    assert found["completions"] > 500
