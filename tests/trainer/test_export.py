"""Exports, opened by those for whom they are: PyTorch, TensorFlow alone, the hub."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from configs.errors import UserError
from tests import hub_server, programs
from tests.conftest import run_program, tiny_model
from tests.trainer.generation.test_sampling import tokenizer  # noqa: F401
from tfrecords import checksums
from tfrecords.storage import files
from trainer.checkpoints import pretrained, run_checkpoints
from trainer.exporting import hub as uploads
from trainer.exporting import huggingface, model_card
from trainer.generation import sampling
from trainer.generation.settings import Settings
from trainer.models.gpt2 import weights
from trainer.run_dir import json_files

TOKENS = [[5, 17, 300, 2, 2, 99, 250, 31], [7, 7, 1, 40, 41, 42, 43, 44]]
FILES = {
    "README.md",
    "SHA256SUMS",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    """(workdir, exported folder): scored before, so that the card has results."""
    folder = tmp_path_factory.mktemp("export")
    shutil.copytree(small_run / "run", folder / "run")
    arguments = [f"--workdir={folder / 'run'}", f"--data_dir={small_run / 'data'}"]
    succeed("trainer.evaluate", *arguments, "--stride=32")
    # As of a program that was killed while it wrote.
    (folder / "run" / "evaluations" / "step-1.json.7.partial").write_text("{")
    target = folder / "exported"
    found = succeed(
        "trainer.export",
        f"--workdir={folder / 'run'}",
        f"--output_dir={target}",
        "--json",
    )
    assert set(json.loads(found.stdout)["files"]) == FILES
    return folder / "run", target


def succeed(*command: str) -> subprocess.CompletedProcess:
    found = programs.run(*command)
    assert found.returncode == 0, found.stderr
    return found


def our_logits(workdir: pathlib.Path) -> np.ndarray:
    gpt2 = run_checkpoints.load_model(str(workdir)).model
    return gpt2(tf.constant(TOKENS)).logits.numpy()


def test_pytorch_has_the_same_logits(exported):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    workdir, folder = exported
    found = in_pytorch([sys.executable], folder)
    np.testing.assert_allclose(found["logits"], our_logits(workdir), atol=1e-4)


def in_pytorch(python: list[str], folder: pathlib.Path) -> dict:
    """What PyTorch's transformers makes of the folder, in a process of its own."""
    script = f"""
        import json, sys, torch, transformers
        folder = {str(folder)!r}
        model, loading = transformers.GPT2LMHeadModel.from_pretrained(
            folder, output_loading_info=True, dtype=torch.float32)
        assert not any(map(len, loading.values())), loading
        auto = transformers.AutoModelForCausalLM.from_pretrained(folder)
        assert isinstance(auto, transformers.GPT2LMHeadModel)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("The quick brown fox")["input_ids"]
        made = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
        with torch.no_grad():
            logits = model.eval()(torch.tensor({TOKENS!r})).logits
        print(json.dumps(dict(
            version=transformers.__version__, logits=logits.tolist(), ids=ids,
            text=tokenizer.decode(ids), made=made[0].tolist(), dtype=str(auto.dtype),
            length=tokenizer.model_max_length,
            tensorflow="tensorflow" in sys.modules)))
    """
    found = subprocess.run(
        [*python, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "USE_TF": "0", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory):
    """The Python of a new environment, which has PyTorch alone."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    python = str(venv / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", "torch==2.13.0"], check=True)
    return python


@pytest.mark.slow
@pytest.mark.parametrize("major", [4, 5])
def test_fresh_environments_without_tensorflow_open_it(exported, fresh_python, major):
    workdir, folder = exported
    python, version = fresh_python, f"transformers>={major},<{major + 1}"
    subprocess.run([python, "-m", "pip", "install", "-q", version], check=True)
    found = in_pytorch([python], folder)
    assert found["version"].startswith(f"{major}.")
    assert not found["tensorflow"]
    np.testing.assert_allclose(found["logits"], our_logits(workdir), atol=1e-4)
    ours = weights.load_tokenizer(str(workdir / "tokenizer"))
    assert found["ids"] == ours("The quick brown fox")["input_ids"]
    assert found["text"] == "The quick brown fox"
    assert found["length"] == 128


def test_the_list_of_checksums_is_one_that_sha256sum_reads(exported):
    command = ["sha256sum", "--check", "--strict", "--quiet", checksums.LIST_NAME]
    subprocess.run(command, cwd=exported[1], check=True)


@pytest.mark.parametrize(("dtype", "atol"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_weights_of_other_types(tokenizer, tmp_path, dtype, atol):  # noqa: F811
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    gpt2 = tiny_model()
    huggingface.save(gpt2, tokenizer, tmp_path, tf.as_dtype(dtype))
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    judge = GPT2LMHeadModel.from_pretrained(tmp_path, dtype="auto")
    assert judge.dtype == getattr(torch, dtype)
    tokens = np.arange(16)[None] % 97
    with torch.no_grad():
        found = judge.float().eval()(torch.tensor(tokens)).logits.numpy()
    expected = gpt2(tf.constant(tokens)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=atol)
    assert np.abs(found - expected).max() > 1e-6  # it was rounded indeed


def test_a_type_too_small_for_the_weights_is_refused(tokenizer, tmp_path):  # noqa: F811
    gpt2 = tiny_model()
    gpt2.transformer.ln_f.gamma.assign(tf.fill([16], 1e5))
    with pytest.raises(UserError, match=r"ln_f\.weight is not finite"):
        huggingface.save(gpt2, tokenizer, tmp_path, tf.float16)


def test_the_card_tells_how_the_model_was_made(exported):
    workdir, folder = exported
    card = (folder / "README.md").read_text()
    run = json.loads((workdir / "run.json").read_text())
    manifest = json.loads((workdir / "manifest.json").read_text())
    (result,) = map(json.loads, map(read, (workdir / "evaluations").glob("*.json")))
    assert run["command"] in card
    assert "6 of 6 steps of 512 tokens, 3,072 in all, on CPU x 2" in card
    assert f"| {manifest['splits']['train']['tokens']:,} |" in card
    assert result["protocol"]["dataset"] in card
    assert f"| 128 | 32 | {result['loss']:.4f} |" in card
    assert "| optimizer.name | `adamw` |" in card


def read(path: pathlib.Path) -> str:
    return path.read_text()


@pytest.mark.slow
def test_tensorflow_alone_scores_and_generates(exported, tmp_path):
    workdir, _ = exported
    folder = tmp_path / "model" / "1"
    folder.mkdir(parents=True)  # as a disk that is mounted there
    succeed(
        "trainer.export",
        f"--workdir={workdir}",
        f"--output_dir={folder}",
        "--format=saved_model",
        "--max_new_tokens=6",
    )
    assert (folder / "assets.extra" / "tokenizer.json").exists()
    gpt2 = run_checkpoints.load_model(str(workdir)).model
    words = weights.load_tokenizer(str(workdir / "tokenizer"))
    prompts = ["The quick brown fox jumps", "It did"]
    encoded = [words(prompt)["input_ids"] for prompt in prompts]
    lengths = [len(ids) for ids in encoded]
    rows = [ids + [0] * (max(lengths) - len(ids)) for ids in encoded]
    script = f"""
        import json, sys
        import tensorflow as tf
        served = tf.saved_model.load({str(folder)!r}).signatures
        tokens = tf.constant({rows!r})
        length = tf.constant({lengths!r})
        score = served["score"](tokens=tokens, length=length)
        made = [
            served["generate"](tokens=tokens, length=length, seed=tf.constant(seed),
                               temperature=tf.constant(temperature))["tokens"]
            for temperature, seed in ((0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1))
        ]
        others = ("transformers", "tf_keras", "trainer", "torch")
        assert not any(name in sys.modules for name in others)
        print(json.dumps([
            {{name: value.numpy().tolist() for name, value in score.items()}},
            [m.numpy().tolist() for m in made]]))
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        # Not the variables that transformers has set here.
        env={"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert found.returncode == 0, found.stderr
    score, (greedy, same, sampled, other) = json.loads(found.stdout.splitlines()[-1])

    logits = gpt2(tf.constant(rows)).logits[:, :-1]
    labels = np.array(rows)[:, 1:]
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits).numpy()
    losses[1, lengths[1] - 1 :] = 0.0
    np.testing.assert_allclose(score["losses"], losses, atol=1e-4)
    np.testing.assert_allclose(score["loss_sum"], losses.sum(axis=1), rtol=1e-5)
    assert score["token_count"] == [length - 1 for length in lengths]

    assert greedy == same
    assert sampled != other
    settings = Settings(max_new_tokens=6, temperature=0.0)
    for prompt, (text,), new in zip(
        prompts, sampling.Sampler(gpt2, words, settings)(prompts), greedy, strict=True
    ):
        assert prompt + words.decode(new, skip_special_tokens=True) == text


def push(workdir: pathlib.Path, folder: pathlib.Path, repository: str, *more: str):
    return programs.run(
        "trainer.export",
        f"--workdir={workdir}",
        f"--output_dir={folder}",
        f"--push_to_hub={repository}",
        *more,
    )


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hub_server.serving(token="hf_right", user="someone") as found:
        for name, value in found.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
        monkeypatch.setenv("HF_TOKEN", "hf_right")
        yield found


def test_every_file_reaches_the_hub_and_nothing_else(exported, hub, tmp_path):
    workdir, folder = exported
    found = push(workdir, tmp_path / "out", "someone/wise", "--private")
    assert found.returncode == 0, found.stderr
    assert hub.private == {"someone/wise"}
    assert f"{hub.url}/someone/wise" in found.stdout
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.repositories["someone/wise"] == expected
    assert "hf_right" not in found.stdout + found.stderr


def test_a_model_loads_by_its_name_on_the_hub(exported, hub):
    _, folder = exported
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.repositories["someone/wise"] = contents
    # A stream is not compiled, which would take most of the time.
    arguments = ["--prompt=The", "--max_new_tokens=4", "--temperature=0", "--stream"]
    # Where transformers looks for a model is settled when it is imported.
    by_name = run_program("trainer.generate", "--checkpoint=someone/wise", *arguments)
    by_folder = programs.run("trainer.generate", f"--checkpoint={folder}", *arguments)
    assert by_name.returncode == 0, by_name.stderr
    assert by_name.stdout == by_folder.stdout


@pytest.mark.parametrize(
    ("initial", "source", "base"),
    [
        ("gpt2", "gpt2", "base_model: gpt2\n"),
        ("someone/wise", "someone/wise", "base_model: someone/wise\n"),
        ("runs/wise", "/home/someone/runs/wise", ""),
        ("", "", ""),
    ],
)
def test_only_a_model_of_the_hub_is_named_as_the_base(
    exported, tmp_path, initial, source, base
):
    """Not a relative path, which is not there when another folder exports."""
    record = json_files.read(str(exported[0] / "run.json"))
    record["config"]["model"]["initial_checkpoint"] = initial
    record["model_config"]["_name_or_path"] = source
    (tmp_path / "run.json").write_text(json.dumps(record))
    loaded = run_checkpoints.load_model(str(exported[0]))
    trained = pretrained.Pretrained(
        loaded.model,
        loaded.architecture,
        task="causal_lm",
        tokenizer="",
        precision="float32",
        name="model",
        step=6,
        origin="",
        published_name="",
    )
    card = model_card.write(trained, str(tmp_path))
    assert "".join(re.findall(r"base_model: .*\n", card)) == base


def test_a_model_in_shards_loads_by_its_name_on_the_hub(exported, hub):
    """Files that the hub lacks are asked for first, and are no error."""
    contents = {path.name: path.read_bytes() for path in exported[1].iterdir()}
    weights = contents.pop("model.safetensors")
    contents["part-1.safetensors"] = weights
    names = safetensors.numpy.load(weights)
    index = {"weight_map": dict.fromkeys(names, "part-1.safetensors")}
    contents["model.safetensors.index.json"] = json.dumps(index).encode()
    hub.repositories["someone/sharded"] = contents
    found = run_program(
        "trainer.generate", "--checkpoint=someone/sharded", "--max_new_tokens=2"
    )
    assert found.returncode == 0, found.stderr


def test_a_wrong_token_is_one_message(exported, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = push(exported[0], tmp_path / "out", "someone/wise")
    assert found.returncode == 2, found.stderr
    errors = [n for n in found.stderr.splitlines() if n.startswith("error:")]
    assert len(errors) == 1
    assert "must be known to the hub" in errors[0]
    assert "Traceback" not in found.stderr
    assert "hf_wrong" not in found.stdout + found.stderr
    assert not hub.repositories.get("someone/wise")


@pytest.mark.parametrize(
    ("token", "repository", "message"),
    [
        ("hf_wrong\n", "someone/wise", "must be known to the hub"),
        ("hf_wröng", "someone/wise", "one with invalid characters"),
        ("", "someone/wise", "Received: none"),
        ("hf_right", "other/wise", "the right to write to other/wise"),
        ("hf_right", "other/theirs", "the right to write to other/theirs"),
        ("hf_right", "a/b/c", "must be USER/NAME. Received: 'a/b/c'"),
    ],
)
def test_what_the_hub_refuses(hub, tmp_path, monkeypatch, token, repository, message):
    # What the library has read from the environment when it was imported.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", token)
    hub.repositories["other/theirs"] = {}
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError) as caught:
        uploads.Uploader(repository).push(tmp_path, private=False)
    assert message in str(caught.value)
    assert not token.strip() or token.strip() not in str(caught.value)
    assert not any(hub.repositories.values())


def test_a_hub_that_is_not_there_is_a_fault(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    found = push(exported[0], tmp_path / "out", "someone/wise")
    assert found.returncode == 1
    assert "huggingface-cli upload someone/wise" in found.stderr
    assert "Traceback" not in found.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


@pytest.mark.parametrize("name", ["notes.txt", ".git"])
def test_a_folder_with_something_in_it_is_refused(exported, tmp_path, name):
    (tmp_path / name).write_text("mine")
    found = programs.run(
        "trainer.export", f"--workdir={exported[0]}", f"--output_dir={tmp_path}"
    )
    assert found.returncode == 2
    assert "must be new or empty" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_saved_model_has_room_for_a_prompt(exported, tmp_path):
    found = programs.run(
        "trainer.export",
        *(f"--workdir={exported[0]}", f"--output_dir={tmp_path / 'model'}"),
        *("--format=saved_model", "--max_new_tokens=128"),
    )
    assert found.returncode == 2
    assert "the model's 128 positions. Received: 128" in found.stderr
    assert not (tmp_path / "model").exists()


def test_a_bucket_gets_the_same_files(exported, bucket):
    workdir, folder = exported
    command = ["trainer.export", f"--workdir={workdir}", f"--output_dir={bucket}/model"]
    first = programs.run(*command)
    assert first.returncode == 0, first.stderr
    found = files.sizes_and_versions(f"{bucket}/model")
    there = {name: files.read(f"{bucket}/model/{name}") for name in found}
    assert there == {path.name: path.read_bytes() for path in folder.iterdir()}
    again = programs.run(*command)
    assert again.returncode == 2
    assert "must be new or empty" in again.stderr
