"""Training a part: frozen weights take no gradient, no state and no memory."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from configs import tpu
from configs.errors import UserError
from configs.schema import LoraConfig
from tests import programs
from tests.conftest import tiny_config, tiny_model
from tests.trainer.planning.test_planner import needs_compiler
from trainer.models import lora, variables
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.planning import planner
from trainer.tasks import causal_lm, host_memory
from trainer.tasks.create import assemble, flops, trained_variables
from trainer.tasks.step import TrainingStep

NAMES = [variables.name_of(v) for v in tiny_model().variables]


def selected(patterns):
    return variables.select("training.trainable", patterns, NAMES)


def test_names_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2Config, GPT2LMHeadModel

    del torch
    judge = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=97))
    assert set(NAMES) == {name for name, _ in judge.named_parameters()}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("", NAMES),
        ("ln_f", ["transformer.ln_f.weight", "transformer.ln_f.bias"]),
        ("wpe, ln_f.bias", ["transformer.wpe.weight", "transformer.ln_f.bias"]),
        ("h.1", [name for name in NAMES if ".h.1." in name]),
        ("!h.*", [name for name in NAMES if ".h." not in name]),
        ("h.1,!weight", [n for n in NAMES if ".h.1." in n and n.endswith("bias")]),
        ("*", NAMES),
    ],
)
def test_patterns_match_parts_of_names(patterns, expected):
    assert selected(patterns) == expected


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ("ln", r"must match a name\. Received: 'ln'\. There are: transformer.wte"),
        ("ln_f,!lm_head", r"Received: '!lm_head'"),
        ("!*", "must leave something to train"),
        ("h.1,!h.*", r"'h.1,!h.\*', which leaves out all of: .*mlp.c_fc.bias \(x 2\)"),
    ],
)
def test_patterns_that_select_nothing_are_refused(patterns, message):
    with pytest.raises(UserError, match=message):
        selected(patterns)


def config_for(trainable="", **training):
    config = tiny_config(trainable=trainable, dropout=0.1, **training)
    config.optimizer.learning_rate = 0.1
    return config


def step_for(config, **settings):
    model = tiny_model(n_layer=1)
    lora.attach(model, config.model.lora, seed=0)
    return assemble(model, GPT2, causal_lm.TASK, config, 10, **settings)


BATCH = {
    "tokens": tf.random.uniform([4, 8], 0, 97, tf.int32, seed=1),
    "length": tf.constant([8, 8, 8, 5]),
    "row": tf.range(4),
}


@pytest.mark.parametrize("name", ["adafactor", "adamw", "muon", "sgd"])
def test_frozen_weights_stay_and_have_no_slots(name, caplog):
    config = config_for("mlp,!bias")
    config.optimizer.name, config.optimizer.beta_1 = name, 0.9
    config.optimizer.weight_decay = 0.5
    with caplog.at_level(logging.INFO):
        step = step_for(config, accumulation_steps=2, compile_local=True)
    assert "on transformer.h.*.mlp.c_fc.weight" in caplog.text
    assert "attn" not in caplog.text  # weight decay
    before = {v.name: v.numpy() for v in step.model.variables}
    step.train_step(BATCH)
    moved = {
        v.name for v in step.model.variables if (v.numpy() != before[v.name]).any()
    }
    assert moved == {v.name for v in step.trained}
    assert len(moved) == 2
    slots = [v for v in step.optimizer.variables if v.shape.rank]
    sizes = 16 * 64 * 2
    assert sum(tf.size(v).numpy() for v in slots) <= 2 * sizes + 4 * (16 + 64)


def test_the_update_is_that_of_training_everything():
    """Of the weights that are trained, by SGD; the gradient's norm is theirs alone."""
    results = {}
    for trainable in ("", "attn"):
        config = config_for(trainable)
        config.optimizer.name = "sgd"
        step = step_for(config)
        norm = float(step.train_step(BATCH)["gradient_norm"])
        values = {variables.name_of(v): v.numpy() for v in step.trained}
        results[trainable] = norm, values
    (whole, all_values), (part, values) = results.values()
    assert part < 0.9 * whole
    for name, value in values.items():
        np.testing.assert_allclose(value, all_values[name], atol=1e-6)


def test_the_loop_over_microbatches_carries_no_sums_of_frozen_weights():
    """Nor is their gradient computed: the graph has no tensor of the table's shape."""

    def shapes_of_loops(trainable):
        step = step_for(config_for(trainable), accumulation_steps=2)
        traced = tf.function(step.local_gradients, autograph=False)
        graph = traced.get_concrete_function(
            {name: BATCH[name] for name in ("tokens", "length")},
            tf.TensorSpec([4], tf.uint32),
        )
        loops = [op for op in graph.graph.get_operations() if "While" in op.type]
        return {tuple(o.shape) for loop in loops for o in loop.outputs}

    assert (97, 16) in shapes_of_loops("")
    assert (97, 16) not in shapes_of_loops("attn")


def test_lora_trains_its_adapters_alone():
    """The others keep every bit, and do so under two microbatches."""
    config = config_for()
    config.model.lora = LoraConfig(2)
    step = step_for(config, accumulation_steps=2)
    before = {v.name: v.numpy() for v in step.model.variables}
    for _ in range(2):  # B is 0 before the first step, and so is the gradient of A
        step.train_step(BATCH)
    moved = {
        v.name for v in step.model.variables if (v.numpy() != before[v.name]).any()
    }
    assert moved == {v.name for v in step.trained}
    assert [v.name.rpartition("/")[2] for v in step.trained] == ["lora_a:0", "lora_b:0"]
    assert trained_variables(step.model, config.training) == step.trained
    assert len(TrainingStep(tiny_model(), GPT2, causal_lm.TASK).trained) == len(NAMES)


def test_flops_are_those_of_what_is_computed():
    whole = GPT2.step_flops(tiny_model(n_layer=1).config, 8, 4)
    for trainable, settings, expected in (
        ("", LoraConfig(), whole),
        ("ln_f", LoraConfig(), whole // 3),
        ("", LoraConfig(2, targets="c_fc"), 2 * whole // 3),
    ):
        config = config_for(trainable)
        config.model.lora = settings
        assert flops(step_for(config), 8, 4) == expected


def test_the_estimate_of_memory_counts_what_is_trained():
    config = config_for()
    model = tiny_model()
    part = [v for v in model.variables if "mlp" in v.name]
    whole, frozen = (
        host_memory.estimate(model, trained, GPT2, config, 8, 1)
        for trained in (model.variables, part)
    )
    assert frozen["weights"] == whole["weights"]
    assert frozen["gradients"] == 3 * variables.num_bytes(part) < whole["gradients"]
    lora.attach(model, LoraConfig(2), 0)
    adapters = lora.adapters(model)
    adapted = host_memory.estimate(model, adapters, GPT2, config, 8, 1)
    assert adapted["copy to save"] == variables.num_bytes(adapters)


@needs_compiler
@pytest.mark.slow
def test_the_plan_shows_what_freezing_saves():
    """By the TPU's compiler: a whole set of gradients."""
    programs.start_server()

    def plan(**fields):
        config = tiny_config(
            global_batch_size=32, microbatch_size=2, precision="bfloat16"
        )
        config.model.n_embd, config.model.n_head = 256, 4
        config.data.sequence_length = config.model.n_positions = 128
        config.data.tokenizer, config.data.vocab_size = "train", 4096
        for name, value in fields.items():
            setattr(config.model if name == "lora" else config.training, name, value)
        return planner.make(config, tpu.parse("v3-8"), None)

    whole, part, adapters = plan(), plan(trainable="ln_f"), plan(lora=LoraConfig(8))
    weights = 4 * whole["parameter_count"]
    assert whole["trained_parameter_count"] == whole["parameter_count"]
    assert part["trained_parameter_count"] == 2 * 256
    assert adapters["trained_parameter_count"] == 8 * 4 * 256
    assert adapters["optimizer_state_bytes"] < 0.5 * whole["optimizer_state_bytes"]
    for smaller in (part, adapters):
        assert whole["temporary_bytes"] - smaller["temporary_bytes"] > 0.9 * weights
        assert smaller["planned_for"] != whole["planned_for"]
        # Only the gradients of what is trained are added up over the replicas.
        share = smaller["trained_parameter_count"] / whole["parameter_count"]
        seconds = all_reduce_seconds(whole) * share
        assert all_reduce_seconds(smaller) == pytest.approx(seconds)


def all_reduce_seconds(plan):
    low, _ = plan["step_seconds_estimate"]
    return low * plan["step_shares"]["all-reduce"]
