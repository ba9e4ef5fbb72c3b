"""Exports, opened by those for whom they are: PyTorch, TensorFlow alone, the hub."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from importlib import metadata

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
    """The Python of a new environment, which has PyTorch alone.

    PyTorch itself, of which a copy takes a minute, is linked to that of these tests.
    """
    pytest.importorskip("torch", reason="needs the extra `parity`")
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    torch = metadata.distribution("torch")
    for name in {file.parts[0] for file in torch.files} - {"..", "__pycache__"}:
        (packages / name).symlink_to(torch.locate_file(name))
    python = str(venv / "bin" / "python")
    install(python, f"torch=={torch.version}")  # what it requires
    return python


def install(python: str, requirement: str) -> None:
    options = ("-q", "--no-compile")  # of thousands of modules, few are imported
    command = [python, "-m", "pip", "install", *options, requirement]
    subprocess.run(command, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("major", [4, 5])
def test_fresh_environments_without_tensorflow_open_it(exported, fresh_python, major):
    workdir, folder = exported
    python, version = fresh_python, f"transformers>={major},<{major + 1}"
    install(python, version)
    found = in_pytorch([python], folder)
    assert found["version"].startswith(f"{major}.")
    assert not found["tensorflow"]
    np.testing.assert_allclose(found["logits"], our_logits(workdir), atol=1e-4)
    ours = weights.load_tokenizer(str(workdir / "tokenizer"))
    assert found["ids"] == ours("The quick brown fox")["input_ids"]
    assert found["text"] == "The quick brown fox"
    assert found["length"] == 128
    assert run_snippet(python, folder) == our_text(workdir)


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
    assert "| data.attention | `causal` |" in card
    assert "| data.seed |" not in card  # the dataset's fingerprint stands for it
    # What acted, where the config leaves the choice open.
    assert "| optimizer.beta_1 | `0.9` |" in card
    assert "| optimizer.warmup_steps | `1` |" in card
    assert "None" not in card


def test_the_hub_s_own_loader_reads_the_header_of_the_card(exported):
    workdir, folder = exported
    header = huggingface_hub.ModelCard.load(folder / "README.md").data
    (result,) = map(json.loads, map(read, (workdir / "evaluations").glob("*.json")))
    assert header.model_name == "run"
    assert (header.library_name, header.pipeline_tag) == (
        "transformers",
        "text-generation",
    )
    # Nothing is made up.
    assert (header.license, header.language, header.datasets) == ("unknown", None, None)
    names = ("token_perplexity", "word_perplexity", "bits_per_byte")
    assert {r.metric_name: r.metric_value for r in header.eval_results} == {
        name.replace("_", " "): result[name] for name in names
    }
    assert {r.metric_type for r in header.eval_results} == set(header.metrics)
    for figure in header.eval_results:
        assert figure.dataset_split == "validation"
        assert figure.dataset_revision == result["protocol"]["dataset"]
        assert figure.metric_args["stride"] == 32
        assert figure.metric_args["context_length"] == 128


def test_the_header_has_what_the_user_states(exported, tmp_path):
    succeed(
        "trainer.export",
        *(f"--workdir={exported[0]}", f"--output_dir={tmp_path / 'out'}"),
        *("--license=mit", "--language=en,de", "--dataset=someone/texts"),
    )
    header = huggingface_hub.ModelCard.load(tmp_path / "out" / "README.md").data
    assert header.license == "mit"
    assert header.language == ["en", "de"]
    assert header.datasets == ["someone/texts"]


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: mit\n---\n# A", "mit"),
        ("---\nlicense: other\nlicense_name: mine\n---\n", "unknown"),
        ("---\nlicense: [mit\n---\n", "unknown"),
        ("# No header", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_license_is_that_of_the_initial_checkpoint(
    exported, tmp_path, card, license
):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    text = card_of(exported, tmp_path, source=str(tmp_path))
    assert huggingface_hub.ModelCard(text).data.license == license


def test_readers_find_the_run_s_values_in_the_configuration(exported):
    _, folder = exported
    config, generation, words = (
        json.loads((folder / name).read_text())
        for name in (
            "config.json",
            "generation_config.json",
            "tokenizer_config.json",
        )
    )
    assert config["n_ctx"] == config["n_positions"] == 128
    # transformers' own default is 0.1.
    assert [config[f"{place}_pdrop"] for place in ("resid", "embd", "attn")] == [
        0.0
    ] * 3
    assert config["pad_token_id"] == config["eos_token_id"] == 0
    assert generation["max_new_tokens"] == 50
    assert words["pad_token"] == words["eos_token"] == "<|endoftext|>"


@pytest.mark.parametrize(
    ("num_positions", "expected"), [(2, 1), (16, 8), (128, 50), (1024, 50)]
)
def test_new_tokens_leave_room_for_a_prompt(num_positions, expected):
    assert huggingface.default_new_tokens(num_positions) == expected


def test_pytorch_prints_our_text_for_the_snippet_of_the_card(exported):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    workdir, folder = exported
    assert run_snippet(sys.executable, folder) == our_text(workdir)


def run_snippet(python: str, folder: pathlib.Path) -> str:
    """What the card's snippet prints, as it stands there."""
    (snippet,) = re.findall(r"```python\n(.*?)```", read(folder / "README.md"), re.S)
    found = subprocess.run(
        [python, "-c", snippet],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "USE_TF": "0", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def our_text(workdir: pathlib.Path) -> str:
    # A stream is not compiled, which would take most of the time.
    arguments = ("--prompt=The", "--temperature=0", "--max_new_tokens=50", "--stream")
    found = succeed("trainer.generate", f"--workdir={workdir}", *arguments)
    return found.stdout.partition("\n")[2]


def read(path: pathlib.Path) -> str:
    return path.read_text()


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
    pushed = hub.repositories["someone/wise"]
    assert b'model="someone/wise"' in pushed["README.md"]
    assert pushed | {"README.md": expected["README.md"]} == expected
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
    exported, tmp_path, monkeypatch, initial, source, base
):
    """Not a relative path, which is not there when another folder exports."""
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True)
    card = card_of(exported, tmp_path, source, initial)
    assert "".join(re.findall(r"base_model: .*\n", card)) == base


def card_of(
    exported, folder: pathlib.Path, source: str, initial: str = "somewhere"
) -> str:
    """The card of a run that began with a checkpoint."""
    record = json_files.read(str(exported[0] / "run.json"))
    record["config"]["model"]["initial_checkpoint"] = initial
    record["model_config"]["_name_or_path"] = source
    (folder / "run.json").write_text(json.dumps(record))
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
    return model_card.write(trained, str(folder))


@pytest.mark.slow
def test_the_license_of_a_model_of_the_hub_is_that_of_its_card(exported, hub, tmp_path):
    contents = {path.name: path.read_bytes() for path in exported[1].iterdir()}
    contents["README.md"] = b"---\nlicense: bsd\n---\n"
    hub.repositories["someone/wise"] = contents
    out = tmp_path / "out"
    found = run_program(
        "trainer.export", "--checkpoint=someone/wise", f"--output_dir={out}"
    )
    assert found.returncode == 0, found.stderr
    assert huggingface_hub.ModelCard.load(out / "README.md").data.license == "bsd"


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
        *("trainer.generate", "--checkpoint=someone/sharded", "--max_new_tokens=2"),
        "--stream",  # which compiles nothing
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
