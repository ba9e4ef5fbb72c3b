"""Checkpoints of every layout and damage: loaded as PyTorch does, or one message."""

import dataclasses
import json
import pathlib
import sys

import h5py
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from configs.errors import UserError
from configs.schema import ModelConfig
from tests import programs
from tests.conftest import VOCABULARY_SIZE, assert_refused, tiny_model
from tests.trainer.models.test_weights import pytorch_folder
from trainer.models.create import create_model, model_configuration
from trainer.models.gpt2 import weights

FILE = "model.safetensors"


class Folder:
    """A checkpoint of two layers in PyTorch's layout, which a test changes."""

    def __init__(self, path: pathlib.Path):
        self.gpt2 = tiny_model()
        self.path = path
        pytorch_folder(path, self.gpt2)
        self.tensors = safetensors.numpy.load_file(path / FILE)

    def save(self, tensors=None, metadata=None, name=FILE):
        tensors = self.tensors if tensors is None else tensors
        safetensors.numpy.save_file(tensors, self.path / name, metadata)

    def configure(self, **values):
        path = self.path / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    def remove(self, *names):
        self.save({k: v for k, v in self.tensors.items() if k not in names})

    def replace(self, name, value):
        self.save({**self.tensors, name: value})

    def save_index(self, weight_map):
        (self.path / FILE).unlink()
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (self.path / f"{FILE}.index.json").write_text(index)

    def shard(self):
        halves = sorted(self.tensors)[::2], sorted(self.tensors)[1::2]
        names = [f"model-{number}-of-2.safetensors" for number in (1, 2)]
        for name, half in zip(names, halves, strict=True):
            self.save({k: self.tensors[k] for k in half}, name=name)
        pairs = zip(names, halves, strict=True)
        self.save_index({k: name for name, half in pairs for k in half})

    def rename(self, function, metadata=None):
        self.save({function(k): v for k, v in self.tensors.items()}, metadata)

    def convert(self, dtype):
        self.save({k: v.astype(dtype) for k, v in self.tensors.items()})

    def save_tensorflow(self, without="", **options):
        (self.path / FILE).unlink()
        self.gpt2.save_pretrained(self.path, **options)
        if without:
            tensors = safetensors.numpy.load_file(self.path / FILE)
            del tensors[without]
            self.save(tensors, {"format": "tf"})

    def save_torch(self, **options):
        torch = pytest.importorskip("torch", reason="needs the extra `parity`")
        (self.path / FILE).unlink()
        tensors = {k: torch.tensor(v) for k, v in self.tensors.items()}
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
        torch.save(tensors, self.path / "pytorch_model.bin", **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "hf")


MATRIX = "transformer.h.1.attn.c_attn.weight"
TABLE = "transformer.wte.weight"
LOADED = {
    "mlx metadata": lambda f: f.save(metadata={"format": "mlx"}),
    "flax metadata": lambda f: f.save(metadata={"format": "flax"}),
    "tf metadata, PyTorch names": lambda f: f.save(metadata={"format": "tf"}),
    "no metadata": lambda f: f.save(metadata=None),
    "shards": Folder.shard,
    "pytorch_model.bin": Folder.save_torch,
    "pytorch_model.bin of old": lambda f: f.save_torch(
        _use_new_zipfile_serialization=False
    ),
    "safetensors of TensorFlow": lambda f: f.save_tensorflow(safe_serialization=True),
    "tf_model.h5": lambda f: f.save_tensorflow(safe_serialization=False),
    "tf_model.h5 in shards": lambda f: f.save_tensorflow(
        safe_serialization=False, max_shard_size="5KB"
    ),
    "prefix _orig_mod": lambda f: f.rename(lambda name: f"_orig_mod.{name}"),
    "prefixes module, _orig_mod": lambda f: f.rename(
        lambda name: f"module._orig_mod.{name}"
    ),
    "base model": lambda f: f.rename(lambda name: name.removeprefix("transformer.")),
    "float64": lambda f: f.convert(np.float64),
    "float16": lambda f: f.convert(np.float16),
    "bfloat16": lambda f: f.convert(tf.bfloat16.as_numpy_dtype),
    "lm_head equal to wte": lambda f: f.replace("lm_head.weight", f.tensors[TABLE]),
    "masks": lambda f: f.save(
        {
            **f.tensors,
            "transformer.h.0.attn.bias": np.tri(16, dtype=np.uint8)[None, None],
            "transformer.h.0.attn.masked_bias": np.array(-1e4, np.float32),
        }
    ),
    "gelu_pytorch_tanh": lambda f: f.configure(activation_function="gelu_pytorch_tanh"),
    "reorder_and_upcast_attn": lambda f: f.configure(reorder_and_upcast_attn=True),
    "names of other models": lambda f: f.configure(n_layer=9, num_hidden_layers=2),
    "settings of generation": lambda f: f.configure(
        output_attentions=True, return_dict=False, no_repeat_ngram_size=1
    ),
}
DTYPES = {"float16": tf.float16, "bfloat16": tf.bfloat16}


@pytest.mark.parametrize("name", LOADED)
def test_every_layout_is_loaded(folder, name):
    LOADED[name](folder)
    loaded = weights.load(str(folder.path))
    dtype = DTYPES.get(name, tf.float32)
    for ours, theirs in zip(loaded.variables, folder.gpt2.variables, strict=True):
        rounded = tf.cast(tf.cast(theirs, dtype), tf.float32)
        np.testing.assert_array_equal(ours, rounded, err_msg=ours.name)
    if dtype == tf.float32:
        tokens = tf.constant([[1, 5, 9, 2]])
        expected = folder.gpt2(tokens).logits
        np.testing.assert_array_equal(loaded(tokens).logits, expected)


def nan(value, at=np.nan):
    changed = value.copy()
    changed.flat[3] = at
    return changed


def truncate(f):
    content = (f.path / FILE).read_bytes()
    (f.path / FILE).write_bytes(content[: len(content) // 2])


def tensorflow_without_matrix(f):
    f.save_tensorflow("transformer/h_._1/attn/c_attn/weight:0", safe_serialization=True)


def only_other_framework(f):
    (f.path / FILE).rename(f.path / "flax_model.msgpack")


def extra_in_h5(f):
    f.save_tensorflow(safe_serialization=False)
    with h5py.File(f.path / "tf_model.h5", "a") as file:
        file["score/gpt2/score/kernel:0"] = np.zeros([16, 2], np.float32)


def garbage(name):
    def write(f):
        if name.endswith(".bin"):
            pytest.importorskip("torch", reason="needs the extra `parity`")
        (f.path / FILE).unlink()
        (f.path / name).write_bytes(b"no weights\n")

    return write


def code_in_a_pickle(f):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    (f.path / FILE).unlink()
    torch.save({"code": pathlib.Path("/")}, f.path / "pytorch_model.bin")


def values_that_are_no_tensors(f):
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    (f.path / FILE).unlink()
    torch.save({"model": {}, "step": 3}, f.path / "pytorch_model.bin")


def index_of_a_missing_shard(f):
    f.shard()
    (f.path / "model-2-of-2.safetensors").unlink()


def config_text(text):
    return lambda f: (f.path / "config.json").write_text(text)


def llama(f):
    f.configure(
        model_type="llama",
        architectures=["LlamaForCausalLM"],
        hidden_size=16,
        hidden_act="silu",
    )


REFUSED = {
    "missing matrix": (lambda f: f.remove(MATRIX), f"Missing: {MATRIX}"),
    "missing matrix, mlx": (
        lambda f: f.save(
            {k: v for k, v in f.tensors.items() if k != MATRIX}, {"format": "mlx"}
        ),
        f"Missing: {MATRIX}",
    ),
    "missing matrix, TensorFlow": (tensorflow_without_matrix, f"Missing: {MATRIX}"),
    "another framework's names": (
        lambda f: f.rename(lambda name: name.replace("weight", "kernel")),
        r"Unexpected: transformer\.h\.0\.attn\.c_attn\.kernel, .* and \d+ more",
    ),
    "transposed matrices": (
        lambda f: f.save({k: np.ascontiguousarray(v.T) for k, v in f.tensors.items()}),
        r"Of another shape: .*c_attn\.weight is \[48, 16\], not \[16, 48\]",
    ),
    "extra matrix": (
        lambda f: f.replace("score.weight", np.zeros([2, 16], np.float32)),
        r"Unexpected: score\.weight\.",
    ),
    "extra matrix, h5": (extra_in_h5, r"Unexpected: score/gpt2/score/kernel:0"),
    "twice": (
        lambda f: f.replace("wte.weight", f.tensors[TABLE]),
        r"Stored twice: (transformer\.)?wte\.weight",
    ),
    "another shape": (
        lambda f: f.replace(MATRIX, np.zeros([16, 47], np.float32)),
        r"c_attn\.weight is \[16, 47\], not \[16, 48\]",
    ),
    "integers": (
        lambda f: f.replace(MATRIX, np.zeros([16, 48], np.int8)),
        "Not of a floating-point type: .* is int8",
    ),
    "NaN": (lambda f: f.replace(MATRIX, nan(f.tensors[MATRIX])), "Not finite: .*attn"),
    "infinity": (
        lambda f: f.replace(TABLE, nan(f.tensors[TABLE], np.inf)),
        "Not finite: transformer.wte.weight",
    ),
    "beyond float32": (
        lambda f: f.replace(TABLE, nan(f.tensors[TABLE].astype(np.float64), 1e300)),
        "Not finite: transformer.wte.weight",
    ),
    "another lm_head": (
        lambda f: f.replace("lm_head.weight", f.tensors[TABLE] + 1),
        r"Not equal to transformer\.wte\.weight: lm_head\.weight",
    ),
    "untied": (
        lambda f: f.configure(tie_word_embeddings=False),
        "`tie_word_embeddings` must be True. Received: False",
    ),
    "Llama": (llama, "`model_type` must be 'gpt2'. Received: 'llama'"),
    "larger vocab_size": (
        lambda f: f.configure(vocab_size=VOCABULARY_SIZE + 1),
        r"wte\.weight is \[97, 16\], not \[98, 16\]",
    ),
    "smaller vocab_size": (
        lambda f: f.configure(vocab_size=VOCABULARY_SIZE - 1),
        r"wte\.weight is \[97, 16\], not \[96, 16\]",
    ),
    "fewer layers": (lambda f: f.configure(n_layer=1), r"Unexpected: .*h\.1\."),
    "more layers": (lambda f: f.configure(n_layer=3), r"Missing: .*h\.2\.attn"),
    "other n_positions": (lambda f: f.configure(n_positions=8), r"wpe\.weight is \[16"),
    "unknown activation": (
        lambda f: f.configure(activation_function="swiglu"),
        "`activation_function` must be one of gelu, .*Received: 'swiglu'",
    ),
    "glu, which PyTorch lacks": (
        lambda f: f.configure(activation_function="glu"),
        "`activation_function` must be one of",
    ),
    "activation of another type": (
        lambda f: f.configure(activation_function=["gelu"]),
        "`activation_function` must be one of",
    ),
    "n_head does not divide": (
        lambda f: f.configure(n_head=3),
        "`n_embd` must be a multiple of `n_head`. Received: 16 and 3",
    ),
    "no heads": (
        lambda f: f.configure(n_head=0),
        "`n_head` must be a positive integer",
    ),
    "a size as text": (
        lambda f: f.configure(n_embd="16"),
        "`n_embd` must be a positive integer. Received: '16'",
    ),
    "epsilon as text": (
        lambda f: f.configure(layer_norm_epsilon="1e-5"),
        "`layer_norm_epsilon` must be a number",
    ),
    "epsilon NaN": (
        lambda f: f.configure(layer_norm_epsilon=float("nan")),
        "`layer_norm_epsilon` must be a number from 0 to 1. Received: nan",
    ),
    "scaled by layer": (
        lambda f: f.configure(scale_attn_by_inverse_layer_idx=True),
        "`scale_attn_by_inverse_layer_idx` must be False. Received: True",
    ),
    "not scaled": (
        lambda f: f.configure(scale_attn_weights=False),
        "`scale_attn_weights` must be True",
    ),
    "cross attention": (
        lambda f: f.configure(add_cross_attention=True),
        "`add_cross_attention` must be False",
    ),
    "pruned heads": (
        lambda f: f.configure(pruned_heads={"0": [1]}),
        "`pruned_heads` must be {}",
    ),
    "empty file": (
        lambda f: (f.path / FILE).write_bytes(b""),
        "model.safetensors must be a whole file",
    ),
    "truncated file": (truncate, "must be a whole file"),
    "text": (garbage(FILE), "must be a whole file"),
    "pickle": (
        lambda f: (f.path / FILE).write_bytes(b"\x80\x04pickle"),
        "must be a whole file",
    ),
    "text, h5": (garbage("tf_model.h5"), "tf_model.h5 must be a whole file"),
    "text, bin": (garbage("pytorch_model.bin"), "must be a whole file"),
    "code in a pickle": (code_in_a_pickle, "must be a whole file"),
    "no tensors": (values_that_are_no_tensors, "model is not a tensor but dict"),
    "no weights": (only_other_framework, "must hold model.safetensors or "),
    "no config": (lambda f: (f.path / "config.json").unlink(), "no config.json"),
    "broken config": (config_text('{"model_type": "gpt2",'), "Reading said: Expecting"),
    "config of no object": (config_text("[]"), "is not a JSON object"),
    "config of no text": (config_text("\0"), "with config.json and weights"),
    "missing shard": (
        index_of_a_missing_shard,
        "files that are not there: model-2-of-2.safetensors",
    ),
    "shard outside": (
        lambda f: f.save_index({TABLE: "../model.safetensors"}),
        r"must name files beside it. Received: \.\./model.safetensors",
    ),
    "shard of an absolute path": (
        lambda f: f.save_index({TABLE: "/etc/passwd"}),
        "must name files beside it. Received: /etc/passwd",
    ),
    "shard of no name": (
        lambda f: f.save_index({TABLE: 3}),
        "must map tensors to files",
    ),
    "index without a map": (lambda f: f.save_index([]), "must map tensors to files"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_one_message(folder, name):
    change, message = REFUSED[name]
    change(folder)
    with pytest.raises(UserError, match=message):
        weights.load(str(folder.path))


def test_a_folder_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(UserError, match="must be a Hugging Face GPT-2 folder"):
        weights.load(str(tmp_path / "nowhere"))


def test_without_pytorch_a_bin_names_the_conversion(folder, monkeypatch):
    folder.save_torch()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        with pytest.raises(UserError, match="needs PyTorch") as caught:
            weights.load(str(folder.path))
    code = "\n".join(line.strip() for line in str(caught.value).splitlines()[1:])
    monkeypatch.chdir(folder.path)
    exec(code, {})
    (folder.path / "pytorch_model.bin").unlink()
    weights.load(str(folder.path))


def test_every_replica_gets_the_weights(folder):
    folder.replace("lm_head.weight", folder.tensors[TABLE])
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        loaded = weights.load(str(folder.path))
    for ours, theirs in zip(loaded.variables, folder.gpt2.variables, strict=True):
        for value in ours.values:
            np.testing.assert_array_equal(value, theirs)


@pytest.mark.parametrize("added", [(), ("<|new|>",)])
def test_a_folder_is_known_by_its_absolute_path(folder, dataset, monkeypatch, added):
    """So that nobody takes "hf" for a name on the hub."""
    monkeypatch.chdir(folder.path.parent)
    size = VOCABULARY_SIZE + len(added)
    written = dataclasses.replace(dataset[1], added_tokens=added, vocabulary_size=size)
    created = create_model(ModelConfig(initial_checkpoint="hf"), written, seed=0)
    assert created.config.vocab_size == size
    assert created.config.to_dict()["_name_or_path"] == str(folder.path)


def test_the_shape_is_refused_before_anything_is_built(folder, dataset):
    folder.configure(n_head=3)
    with pytest.raises(UserError, match="a multiple of `n_head`"):
        model_configuration(
            ModelConfig(initial_checkpoint=str(folder.path)), dataset[1]
        )


@pytest.mark.parametrize("name", ["NaN", "missing matrix, mlx", "Llama", "text"])
def test_the_trainer_refuses_in_one_message(folder, dataset, tmp_path, name):
    change, _ = REFUSED[name]
    change(folder)
    found = programs.run(
        "trainer.train",
        "--config=configs/quickstart.py",
        "--config.tracking.sample_interval=0",
        f"--config.model.initial_checkpoint={folder.path}",
        f"--data_dir={dataset[0]}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert_refused(found, str(folder.path))


def test_a_plan_refuses_in_one_message(folder, dataset):
    llama(folder)
    for data in (f"--data_dir={dataset[0]}", "--data_dir="):
        found = programs.run(
            "trainer.plan",
            "--config=configs/quickstart.py",
            "--tpu_type=v3-8",
            "--config.training.global_batch_size=8",
            f"--config.model.initial_checkpoint={folder.path}",
            data,
        )
        assert_refused(found, "`model_type` must be 'gpt2'")


@pytest.mark.parametrize("name", ["missing matrix", "fewer layers", "n_head does not "])
def test_generation_refuses_in_one_message(folder, name):
    change, _ = next(value for key, value in REFUSED.items() if key.startswith(name))
    change(folder)
    found = programs.run(
        "trainer.generate", f"--checkpoint={folder.path}", "--prompt=a"
    )
    assert_refused(found, str(folder.path))


def test_a_loss_that_is_not_finite_is_one_message(folder, dataset):
    """Never NaN in what `--json` prints: the weights are finite, the network is not."""
    folder.save({name: value * 1e30 for name, value in folder.tensors.items()})
    found = programs.run(
        "trainer.evaluate",
        f"--checkpoint={folder.path}",
        f"--data_dir={dataset[0]}",
        "--json",
    )
    assert_refused(found, "must be finite. Received: loss_sum nan", "overflows")
    assert "NaN" not in found.stdout
