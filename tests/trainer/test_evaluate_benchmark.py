"""`trainer.evaluate --benchmark`, with lm-eval as the judge of what it prints."""

import json
import pathlib
import shutil

import pytest
import tensorflow as tf

from tests import programs
from tests.conftest import assert_refused, tiny_model
from trainer.exporting import huggingface
from trainer.models.gpt2 import weights
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2

FOX = "The quick brown fox jumps over the lazy dog"
ENDINGS = [f"{FOX}.", "dog. Then  it sleeps [title] At home", "times it did so.", "so."]
PAGE = " = {} = \n \n The fox , quick @-@ witted , jumps ( 3 @.@ 5 metres ) . \n"
# In the published formats; no real example.
EXAMPLES = {
    "lambada": [
        {"text": f"{FOX}. {number} times it did {'so' if number % 2 else 'jump'}"}
        for number in range(8)
    ]
    + [{"text": "fox " * count + "fox"} for count in (1, 3, 60, 200)]
    + [
        {"text": "a a a a a a"},
        {"text": "Dog"},
        {"text": f"\u201c{FOX}\u201d\n\n yes"},
    ],
    "hellaswag": [
        {
            "ind": number,
            "activity_label": "Jumping",
            "split": "val",
            "ctx_a": f"{number} foxes wait. [header] How",
            "ctx_b": "the Dog",
            "ctx": f"{number} foxes wait. [header] How the Dog",
            "endings": ENDINGS[number % 4 :] + ENDINGS[: number % 4],
            "label": [number % 3, str(number % 4)][number % 2],
        }
        for number in range(12)
    ],
    "blimp": [
        {"sentence_good": f"{number} {FOX}.", "sentence_bad": f"{FOX} {number}."}
        for number in range(12)
    ],
    "wikitext": [
        {"page": PAGE.format(name) + "The dog 's fox . \n" * count}
        for name, count in (("Fox", 3), ("Dog", 40), ("Lazy", 0))
    ],
}
# Ours -> the harness's.
FIGURES = {
    "lambada": {"accuracy": "acc", "perplexity": "perplexity"},
    "hellaswag": {"accuracy": "acc", "normalized_accuracy": "acc_norm"},
    "blimp": {"accuracy": "acc"},
    "wikitext": dict.fromkeys(("word_perplexity", "byte_perplexity", "bits_per_byte")),
}
TASKS = {
    "lambada": "lambada/lambada_openai.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "blimp": "blimp/_template_yaml",
    "wikitext": "wikitext/wikitext.yaml",
}


def write(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in EXAMPLES[name]))
    return path


def evaluate(*arguments):
    process = programs.run("trainer.evaluate", "--json", *arguments, XLA_FLAGS="")
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def checkpoint(small_run, tmp_path_factory) -> pathlib.Path:
    """An exported model with random weights, to which " so" is the likeliest word."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = weights.load_tokenizer(str(small_run / "data" / "tokenizer"))
    gpt2 = tiny_model(vocab_size=400, n_embd=64, n_positions=80)
    (so,) = tokenizer.encode(" so")
    gpt2.transformer.ln_f.beta.assign(12 * GPT2.output_table(gpt2)[so])
    huggingface.save(gpt2, tokenizer, folder, tf.float32)
    return folder


@pytest.mark.slow
def test_figures_are_those_of_the_harness(checkpoint, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs lm-eval, of the extra `harness`")
    for name, values in judge(checkpoint, tmp_path, monkeypatch).items():
        found = evaluate(
            f"--checkpoint={checkpoint}",
            f"--benchmark={name}",
            f"--benchmark_file={write(tmp_path, name)}",
        )
        assert found["examples"] == len(EXAMPLES[name])
        for ours, theirs in FIGURES[name].items():
            assert found[ours] == pytest.approx(values[theirs or ours], rel=1e-5), name
        if name in ("lambada", "hellaswag"):  # which could be equal by chance
            assert 0 < found["accuracy"] < 1


def judge(checkpoint, folder, monkeypatch) -> dict[str, dict[str, float]]:
    """Returns the harness's figures of its own tasks, on our files."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(1)
    root = pathlib.Path(lm_eval.__file__).parent / "tasks"
    (folder / "tasks").mkdir()
    for name, path in TASKS.items():
        files = dict.fromkeys(("train", "validation", "test"), str(write(folder, name)))
        settings = {"dataset_name": None, "dataset_kwargs": {"data_files": files}}
        settings |= {"include": str(root / path), "task": f"our_{name}", "tag": None}
        settings |= {"dataset_path": "json"}
        (folder / "tasks" / f"{name}.yaml").write_text(json.dumps(settings))
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=4),
        tasks=[f"our_{name}" for name in TASKS],
        task_manager=TaskManager(
            include_path=str(folder / "tasks"), include_defaults=False
        ),
        bootstrap_iters=0,
    )["results"]
    return {
        name: {
            metric.removesuffix(",none"): value
            for metric, value in results[f"our_{name}"].items()
        }
        for name in TASKS
    }


def test_a_result_of_a_run_is_stamped_stored_and_on_its_card(small_run, tmp_path):
    shutil.copytree(small_run / "run", tmp_path / "run")
    path = write(tmp_path, "hellaswag")
    found = evaluate(
        f"--workdir={tmp_path / 'run'}",
        "--benchmark=hellaswag",
        f"--benchmark_file={path}",
    )
    assert found["protocol"].pop("dataset")
    assert found["protocol"].pop("tokenizer")
    assert found["protocol"] == {
        "benchmark": "hellaswag",
        "split": "hellaswag.jsonl",
        "context_length": 128,
        "precision": "float32",
    }
    assert found["published"] == []  # only of published weights
    (stored,) = (tmp_path / "run" / "evaluations").glob("*.json")
    assert json.loads(stored.read_text())["accuracy"] == found["accuracy"]
    export = programs.run(
        "trainer.export",
        f"--workdir={tmp_path / 'run'}",
        f"--output_dir={tmp_path / 'hf'}",
    )
    assert export.returncode == 0, export.stderr
    card = (tmp_path / "hf" / "README.md").read_text()
    assert f"| 6 | hellaswag | accuracy {found['accuracy']:.4g}, " in card
    assert "  dataset:\n      name: hellaswag\n" in card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--benchmark=lambada", "--stride=8"], "`--benchmark` excludes `--stride`"),
        (["--benchmark_file=x.jsonl", "--data_dir=."], "Name the benchmark"),
        (["--benchmark=blimp"], "needs `--benchmark_file`"),
        (["--benchmark=lambada", "--benchmark_file=no.jsonl"], "no.jsonl"),
        (["--benchmark=lambda"], "lambada|hellaswag|wikitext|blimp"),
    ],
)
def test_a_mistake_is_one_message(arguments, message):
    process = programs.run("trainer.evaluate", "--checkpoint=x", *arguments)
    assert_refused(process, message)
