"""The SavedModel, in a process that has TensorFlow and tokenizers alone."""

import json
import pathlib
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tests import programs
from tests.conftest import ROOT
from trainer.checkpoints import run_checkpoints
from trainer.generation import sampling
from trainer.generation.settings import Settings
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

# The export traces its signatures for seconds.
pytestmark = pytest.mark.slow

PROMPTS = ["The quick brown fox jumps", "It did", "It did"]
SETTINGS = [
    Settings(max_new_tokens=6, temperature=0.0),
    Settings(max_new_tokens=6, temperature=1.5, top_k=40, top_p=0.9),
    Settings(max_new_tokens=6, temperature=0.7),
]
SEEDS = [0, 3, 4]


@pytest.fixture(scope="module")
def served(small_run, tmp_path_factory) -> pathlib.Path:
    """A folder with the SavedModel at the path of the documentation."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "models/gpt2/1").mkdir(parents=True)  # as a disk that is mounted there
    process = programs.run(
        "trainer.export",
        f"--workdir={small_run / 'run'}",
        f"--output_dir={folder / 'models/gpt2/1'}",
        "--format=saved_model",
        "--max_new_tokens=6",
    )
    assert process.returncode == 0, process.stderr
    return folder


@pytest.fixture(scope="module")
def model(small_run):
    """(GPT-2, its tokenizer)."""
    run = small_run / "run"
    gpt2 = run_checkpoints.load_model(str(run)).model
    return gpt2, weights.load_tokenizer(str(run / "tokenizer"))


@pytest.fixture(scope="module")
def signatures(served):
    return tf.saved_model.load(str(served / "models/gpt2/1")).signatures


def as_rows(ids: list[list[int]], width: int = 0) -> dict[str, list]:
    width = max(width, *map(len, ids))
    return {
        "tokens": [row + [0] * (width - len(row)) for row in ids],
        "length": [len(row) for row in ids],
    }


def as_instances(columns: dict[str, list]) -> list[dict]:
    """A request of TensorFlow Serving in its row format."""
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]


def predict(signature, instances: list[dict]) -> list:
    """Stacks the rows as TensorFlow Serving does; returns an output for each row."""
    _, specs = signature.structured_input_signature
    inputs = {
        name: tf.constant([row[name] for row in instances], spec.dtype)
        for name, spec in specs.items()
    }
    outputs = signature(**inputs)
    assert all(len(value) == len(instances) for value in outputs.values())
    return outputs


def generation_columns(ids, width: int = 0) -> dict[str, list]:
    return {
        **as_rows(ids, width),
        "temperature": [settings.temperature for settings in SETTINGS],
        "top_k": [settings.top_k for settings in SETTINGS],
        "top_p": [settings.top_p for settings in SETTINGS],
        "seed": SEEDS,
    }


def test_scores_and_logits_are_those_of_the_model(signatures, model):
    gpt2, tokenizer = model
    ids = tokenizer(PROMPTS)["input_ids"]
    columns = as_rows(ids)
    rows, lengths = np.array(columns["tokens"]), columns["length"]
    logits = gpt2(tf.constant(rows)).logits
    found = predict(signatures["logits"], as_instances({"tokens": columns["tokens"]}))
    np.testing.assert_allclose(found["logits"], logits, atol=1e-4)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        rows[:, 1:], logits[:, :-1]
    ).numpy()
    for row, length in enumerate(lengths):
        losses[row, length - 1 :] = 0.0
    score = predict(signatures["score"], as_instances(columns))
    np.testing.assert_allclose(score["losses"], losses, atol=1e-4)
    np.testing.assert_allclose(score["loss_sum"], losses.sum(axis=1), rtol=1e-5)
    assert score["token_count"].numpy().tolist() == [n - 1 for n in lengths]


def test_each_row_has_its_settings_and_the_text_of_generate(signatures, model):
    gpt2, tokenizer = model
    columns = generation_columns(tokenizer(PROMPTS)["input_ids"], width=40)
    new = predict(signatures["serving_default"], as_instances(columns))["tokens"]
    for prompt, settings, seed, row in zip(
        PROMPTS, SETTINGS, SEEDS, new.numpy(), strict=True
    ):
        ((text,),) = sampling.Sampler(GPT2, gpt2, tokenizer, settings)(
            [prompt], seed=seed
        )
        assert prompt + tokenizer.decode(row, skip_special_tokens=True) == text
    assert new[1].numpy().tolist() != new[2].numpy().tolist()


def test_a_row_does_not_depend_on_the_batch_or_its_padding(signatures, model):
    _, tokenizer = model
    ids = tokenizer(PROMPTS)["input_ids"]
    together = as_instances(generation_columns(ids, width=20))
    signature = signatures["serving_default"]
    new = predict(signature, together)["tokens"].numpy().tolist()
    for index, row in enumerate(as_instances(generation_columns(ids))):
        assert predict(signature, [row])["tokens"].numpy().tolist() == [new[index]]
    turned = predict(signature, together[::-1])["tokens"].numpy().tolist()
    assert turned == new[::-1]


@pytest.mark.parametrize(
    ("signature", "change", "message"),
    [
        (
            "generate",
            {"tokens": [1] * 123},
            "at most 122 of them: the 128 positions of the model, less 6",
        ),
        ("score", {"tokens": [1] * 129}, "at most 128 of them"),
        ("logits", {"tokens": [1] * 129}, "at most 128 of them"),
        ("logits", {"tokens": [1, 400]}, "from 0 to 399"),
        ("score", {"tokens": [1, -1]}, "from 0 to 399"),
        ("generate", {"length": 0}, "`length` must be from 1"),
        ("score", {"length": 4}, "`length` must be from 1"),
        ("generate", {"temperature": -1.0}, "`temperature` must be 0 or more"),
        ("generate", {"temperature": float("nan")}, "`temperature` must be 0 or more"),
        ("generate", {"top_k": -1}, "`top_k` must be 0 or more"),
        ("generate", {"top_p": 1.5}, "`top_p` must be from 0 to 1"),
    ],
)
def test_a_row_that_does_not_fit_is_an_error(signatures, signature, change, message):
    row = {"tokens": [1, 2, 3], "length": 3, "temperature": 1.0, "top_k": 0}
    row |= {"top_p": 1.0, "seed": 0, **change}
    if "tokens" in change:
        row["length"] = len(change["tokens"])
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        predict(signatures[signature], [row])


def test_the_page_s_snippet_needs_tensorflow_and_tokenizers_alone(served, model):
    page = (ROOT / "docs" / "generation_and_export.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.S)
    checks = """
        import sys
        others = ("transformers", "tf_keras", "trainer", "torch")
        assert not any(name in sys.modules for name in others)
    """
    found = subprocess.run(
        [sys.executable, "-c", snippet + textwrap.dedent(checks)],
        capture_output=True,
        text=True,
        cwd=served,
        # Not the variables that transformers has set here.
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert found.returncode == 0, found.stderr
    gpt2, tokenizer = model
    greedy = sampling.Sampler(GPT2, gpt2, tokenizer, SETTINGS[0])
    ((text,),) = greedy(["The film"])
    assert found.stdout.startswith(f"{text}\nIt was")


def test_the_page_s_request_is_one_of_rows(signatures):
    page = (ROOT / "docs" / "generation_and_export.md").read_text()
    (request,) = re.findall(r":predict -d '(.*?)'", page, re.S)
    instances = json.loads(request)["instances"]
    assert len(predict(signatures["serving_default"], instances)["tokens"]) == 2
