"""Random configurations, each loaded and computed as PyTorch does, or refused."""

import collections
import json

import h5py
import numpy as np
import pytest
import tensorflow as tf
from transformers import GPT2Config

from configs.errors import UserError
from trainer.models.gpt2 import forward, weights

torch = pytest.importorskip("torch", reason="needs the extra `parity`")

NUM_CONFIGURATIONS = 80


def random_configuration(generator):
    """A GPT2Config's fields, and whether they cannot be computed here."""
    num_heads = int(generator.integers(1, 5))
    values = {
        "vocab_size": int(generator.integers(5, 60)),
        "n_positions": int(generator.integers(2, 24)),
        "n_layer": int(generator.integers(1, 4)),
        "n_head": num_heads,
        "n_embd": num_heads * int(generator.integers(1, 9)),
        "n_inner": generator.choice([None, int(generator.integers(1, 70))]),
        "layer_norm_epsilon": float(generator.choice([1e-5, 1e-6, 1e-3, 0.1])),
        "reorder_and_upcast_attn": bool(generator.integers(2)),
        "activation_function": str(
            generator.choice(
                [
                    *("gelu", "gelu_10", "gelu_fast", "gelu_new", "mish", "quick_gelu"),
                    *("relu", "sigmoid", "silu", "swish", "tanh", "gelu_python"),
                    *("gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"),
                ]
            )
        ),
    }
    unusual = [
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"tie_word_embeddings": False},
        {"activation_function": str(generator.choice(["relu2", "linear", "laplace"]))},
        {"add_cross_attention": True},
    ]
    is_unusual = generator.random() < 0.3
    if is_unusual:
        values |= unusual[generator.integers(len(unusual))]
    return values, is_unusual


def tensorflow_name(name):
    """In .h5, as TFGPT2LMHeadModel's `save_pretrained` writes it."""
    *path, last = name.split(".")
    if path[-1].startswith("ln_"):
        last = {"weight": "gamma", "bias": "beta"}[last]
    elif path[-1] in ("wte", "wpe"):
        last = "embeddings"
    path = "/".join(["transformer", "tfgpt2lm_head_model", *path, f"{last}:0"])
    return path.replace("/h/", "/h_._")


def save_randomly(path, state, generator):
    """Writes PyTorch's weights in a random layout, with random names and metadata."""
    from safetensors.torch import save_file

    layout = generator.choice(["safetensors", "bin", "old bin", "shards", "h5"])
    if layout == "h5":
        with h5py.File(path / "tf_model.h5", "w") as file:
            for name, tensor in state.items():
                if name != "lm_head.weight":  # NumPy has no bfloat16
                    is_short = tensor.dtype == torch.bfloat16
                    value = tensor.float() if is_short else tensor
                    file[tensorflow_name(name)] = value.numpy()
        return
    prefix = str(generator.choice(["", "_orig_mod.", "module.", "module._orig_mod."]))
    is_base = "lm_head.weight" not in state and generator.integers(2)
    named = {
        prefix + (name.removeprefix("transformer.") if is_base else name): tensor
        for name, tensor in state.items()
    }
    if layout.endswith("bin"):
        torch.save(
            named,
            path / "pytorch_model.bin",
            _use_new_zipfile_serialization=layout == "bin",
        )
        return
    form = generator.choice(["pt", "mlx", "tf", ""])
    metadata = {"format": str(form)} if form else None
    if layout == "safetensors":
        save_file(named, path / "model.safetensors", metadata)
        return
    weight_map = {name: f"part-{generator.integers(3)}.safetensors" for name in named}
    for shard in set(weight_map.values()):
        part = {name: named[name] for name in named if weight_map[name] == shard}
        save_file(part, path / shard, metadata)
    index = json.dumps({"weight_map": weight_map})
    (path / "model.safetensors.index.json").write_text(index)


def judge_and_folder(path, values, generator):
    """PyTorch's model with the weights that the folder holds, at their precision."""
    from transformers import GPT2LMHeadModel

    torch.manual_seed(int(generator.integers(2**31)))
    config = GPT2Config(**values)
    judge = GPT2LMHeadModel(config).eval()
    dtype = getattr(
        torch, generator.choice(["float32", "float16", "bfloat16", "float64"])
    )
    with torch.no_grad():
        for parameter in judge.parameters():
            noise = torch.randn_like(parameter) * 0.3
            parameter.copy_((parameter + noise).to(dtype))
    stored = judge.state_dict().items()
    state = {name: tensor.to(dtype).clone() for name, tensor in stored}
    if config.tie_word_embeddings and generator.integers(2):
        del state["lm_head.weight"]
    path.mkdir()
    config.save_pretrained(path)
    save_randomly(path, state, generator)
    return judge


def outcome(path, values, generator):

    judge = judge_and_folder(path, values, generator)
    try:
        ours = weights.load(str(path))
    except UserError:
        return "refused"
    shape = ours.config
    tokens = generator.integers(0, shape.vocab_size, (2, shape.n_positions))
    with torch.no_grad():
        expected = judge(torch.tensor(tokens)).logits.numpy()
    hidden = forward.hidden_states(ours, tf.constant(tokens, tf.int32))
    table = forward.output_table(ours)
    # What trains and evaluates, and what generates.
    for found in (tf.matmul(hidden, table, transpose_b=True), ours(tokens).logits):
        error = np.abs(found - expected).max() / np.abs(expected).max()
        if not error < 2e-5:
            return f"wrong by {error}"
    return "equal"


def test_random_configurations_equal_pytorch_or_are_refused(tmp_path):
    torch.set_num_threads(1)
    counts, surprises = collections.Counter(), []
    for seed in range(NUM_CONFIGURATIONS):
        generator = np.random.default_rng(seed)
        values, is_unusual = random_configuration(generator)
        found = outcome(tmp_path / str(seed), values, generator)
        counts[found] += 1
        if found != ("refused" if is_unusual else "equal"):
            surprises.append((seed, found, values))
    print(dict(counts))
    assert not surprises
    assert counts["equal"] >= 40
    assert counts["refused"] >= 15
