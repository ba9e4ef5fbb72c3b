"""A classifier from its texts to PyTorch's pipeline; what is refused."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from configs.errors import DataError, UserError
from configs.schema import Config, DataConfig, LoraConfig
from data_pipeline.job import plan_job
from data_pipeline.pipeline import preprocess
from tests import programs
from tests.conftest import assert_refused, tiny_config
from tests.data_pipeline.runs import in_process
from tests.trainer.checkpoints.test_run_checkpoints import compile_nothing
from tfrecords import manifest as manifests
from trainer.checkpoints import lora_base, pretrained, run_checkpoints
from trainer.evaluation import bag_of_words
from trainer.evaluation.evaluator import evaluate
from trainer.evaluation.predicting import Predictor
from trainer.exporting import huggingface
from trainer.models import classifier, lora, variables
from trainer.models.gpt2.architecture import ARCHITECTURE as GPT2
from trainer.reporting import page
from trainer.reporting import runs as report_runs
from trainer.run_dir import metrics, results
from trainer.runtime.cluster import Cluster
from trainer.runtime.strategy import mirror_cpu
from trainer.training.loop import train

WORDS = {"good": "fine warm bright kind", "bad": "dull cold flat rude", "so-so": "mid"}
TEXTS = ["a bright film", "dull", "mid mid " * 40, "the rude and the cold"]


def write_texts(path, num=600, names=tuple(WORDS)):
    """Texts that one word of their label is in."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(num):
        label = names[number % len(names)]
        words = [*generator.choice(["the", "a", "film", "plot", "of", "and", "is"], 6)]
        words.insert(generator.integers(6), generator.choice(WORDS[label].split()))
        rows.append({"text": " ".join(words), "label": label})
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def make_data(folder, source, **fields):
    """With an end token behind each text, as by default."""
    settings = {"tokenizer": "train", "vocab_size": 300, "sequence_length": 24}
    config = Config(
        data=DataConfig(input=source, mode="labelled", **{**settings, **fields})
    )
    config.model.n_positions = 24
    preprocess(plan_job(config), str(folder), in_process)
    return str(folder)


def config_of(num_steps):
    config = tiny_config(
        task="classification",
        num_steps=num_steps,
        global_batch_size=16,
        microbatch_size=8,
        evaluation_interval=num_steps,
        dropout=0.0,
        steps_per_execution=20,
    )
    config.model.n_positions = 24
    config.optimizer.name, config.optimizer.learning_rate = "adamw", 0.02
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with `data`, `run` and its export, `exported`."""
    folder = tmp_path_factory.mktemp("classifier")
    data = make_data(folder / "data", write_texts(folder / "texts.jsonl"))
    config = config_of(num_steps=60)
    with pytest.MonkeyPatch.context() as patch:
        compile_nothing(patch)
        cluster = Cluster(mirror_cpu(2))
        train(config, data, str(folder / "run"), cluster)
        save(folder / "run", folder / "exported")
    return folder


@pytest.fixture(scope="module")
def adapted(trained):
    """The folder with `lora`, too: a run that starts from the export."""
    config = config_of(num_steps=20)
    config.model.initial_checkpoint = str(trained / "exported")
    config.model.lora = LoraConfig(rank=2)
    data = str(trained / "data")
    with pytest.MonkeyPatch.context() as patch:
        compile_nothing(patch)
        train(config, data, str(trained / "lora"), Cluster(mirror_cpu(2)))
    save(trained / "lora", trained / "merged")
    return trained


def save(run, target):
    loaded = pretrained.load(str(run), 0, "")
    target.mkdir()
    huggingface.save(
        loaded.architecture.as_transformers(loaded.model),
        loaded.architecture.load_tokenizer(loaded.tokenizer),
        target,
        loaded.model.variables[0].dtype,
        max_length=loaded.sequence_length,
    )


def predict(*model):
    return Predictor(pretrained.load(*model), batch_size=3)(TEXTS)


def test_it_learns_and_labels_texts(trained):
    last = metrics.load(str(trained / "run"))[-1]
    assert last["validation_accuracy"] == 1
    assert last["validation_macro_f1"] == 1
    found = predict(str(trained / "run"), 0, "")
    assert [result["label"] for result in found] == ["good", "bad", "so-so", "bad"]
    for result in found:
        assert set(result["probabilities"]) == set(WORDS)
        assert sum(result["probabilities"].values()) == pytest.approx(1)
    assert [result["truncated_tokens"] > 0 for result in found] == [0, 0, 1, 0]


@pytest.mark.slow
def test_pytorch_s_pipeline_runs_the_export(adapted):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    script = textwrap.dedent("""
        import json, sys, transformers
        for folder in sys.argv[2:]:
            classify = transformers.pipeline("text-classification", model=folder)
            made = classify(
                json.loads(sys.argv[1]), top_k=None, truncation=True, batch_size=4)
            print(json.dumps([type(classify.model).__name__, made]))
    """)
    folders = {"run": adapted / "exported", "lora": adapted / "merged"}
    found = subprocess.run(
        [sys.executable, "-c", script, json.dumps(TEXTS), *map(str, folders.values())],
        capture_output=True,
        text=True,
        env={**os.environ, "USE_TF": "0", "USE_TORCH": "1"},
    )
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()[-2:]
    for (name, target), line in zip(folders.items(), lines, strict=True):
        kind, theirs = json.loads(line)
        assert kind == "GPT2ForSequenceClassification"
        ours = predict(str(adapted / name), 0, "")
        for mine, scores in zip(ours, theirs, strict=True):
            assert mine["label"] == scores[0]["label"]
            assert mine["probabilities"] == pytest.approx(
                {score["label"]: score["score"] for score in scores}, abs=1e-4
            )
        again = predict("", 0, str(target))
        assert [r["probabilities"] for r in again] == [
            pytest.approx(r["probabilities"], abs=1e-5) for r in ours
        ]


@pytest.mark.slow
def test_lora_saves_adapters_and_the_head(adapted):
    loaded = run_checkpoints.load_model(str(adapted / "lora"))
    names = [variables.name_of(v) for v in lora_base.saved(loaded.model)]
    assert [name.rpartition(".")[2].rpartition("/")[2] for name in names] == [
        *("lora_a", "lora_b"),
        "weight",
    ]
    before = GPT2.load(str(adapted / "exported"))
    frozen = lora.base(loaded.model)
    for mine, theirs in zip(frozen, before.variables, strict=True):
        is_head = variables.name_of(mine) == "score.weight"
        assert np.array_equal(mine, theirs) != is_head


def test_evaluation_stands_beside_baselines_and_in_the_report(trained):
    strategy = mirror_cpu(2)
    with strategy.scope():
        model = pretrained.load(str(trained / "run"), 0, "")
    data = str(trained / "data")
    (found,) = evaluate(model, strategy, data, split="validation", batch_size=7)
    counts = manifests.load(data).split("validation").labels
    assert found["labels"] == sorted(WORDS)
    assert [sum(row) for row in found["confusion"]] == [
        counts[name] for name in sorted(WORDS)
    ]
    assert found["accuracy"] == found["bag_of_words_accuracy"] == 1
    train_counts = manifests.load(data).split("train").labels
    frequent = max(sorted(train_counts), key=train_counts.__getitem__)
    expected = counts[frequent] / sum(counts.values())
    assert found["majority_accuracy"] == pytest.approx(expected)
    with pytest.raises(UserError, match="are read whole"):
        next(evaluate(model, strategy, data, split="validation", stride=8))

    results.save(str(trained / "run"), found)
    report = page.page([report_runs.read(str(trained / "run"), "run")])
    assert "Confusion" in report
    assert f">{counts['good']}</text>" in report
    assert "nats per text" in report


def test_another_dataset_is_scored_by_the_names_of_its_labels(trained, tmp_path):
    strategy = mirror_cpu(1)
    with strategy.scope():
        model = pretrained.load(str(trained / "run"), 0, "")
    fields = {"tokenizer": str(trained / "data" / "tokenizer")}
    source = write_texts(tmp_path / "a.jsonl", 90, ("so-so", "good"))
    data = make_data(tmp_path / "two", source, **fields)
    assert manifests.load(data).labels == ("good", "so-so")
    (found,) = evaluate(model, strategy, data, split="train")
    assert found["accuracy"] == 1
    assert found["confusion"][0] == [0, 0, 0]
    path = tmp_path / "b.jsonl"
    path.write_text((tmp_path / "a.jsonl").read_text().replace("so-so", "awful"))
    data = make_data(tmp_path / "unknown", str(path), **fields)
    with pytest.raises(DataError, match=r"bad, good, so-so\. Received: .* awful"):
        next(evaluate(model, strategy, data, split="train"))


def test_the_bag_of_words_is_at_its_optimum():
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(0)
    present = generator.random([300, 40]) < 0.15
    labels = (present[:, 0] + 2 * present[:, 1] + (generator.random(300) < 0.2)) % 3
    rows, words = np.nonzero(present)
    texts = bag_of_words.Texts(words, rows, labels.astype(int))

    def objective(flat):
        weights = flat.reshape(41, 3)
        logits = present @ weights[:-1] + weights[-1]
        right = logits[np.arange(300), texts.labels]
        loss = np.logaddexp.reduce(logits, axis=1) - right
        return loss.sum() + 0.5 * (weights[:-1] ** 2).sum()

    weights, bias = bag_of_words.fit(texts, 40, 3)
    found = objective(np.concatenate([weights, bias[None]]).ravel())
    best = optimize.minimize(objective, np.zeros(123), method="L-BFGS-B").fun
    assert found == pytest.approx(best, rel=1e-3)


def test_words_are_what_spaces_and_chinese_characters_separate():
    pattern = bag_of_words._WORD
    assert pattern.findall("don't x_1 好電影 ok") == [
        *("don", "t", "x_1", "好", "電", "影", "ok")
    ]


@pytest.mark.slow
def test_the_program_reads_arguments_files_and_standard_input(trained, tmp_path):
    workdir = f"--workdir={trained / 'run'}"
    path = tmp_path / "texts.txt"
    path.write_text("a bright film\r\ndull\n")
    found = programs.run("trainer.predict", workdir, f"--text_file={path}", "--json")
    assert found.returncode == 0, found.stderr
    result = json.loads(found.stdout)
    assert result["labels"] == ["bad", "good", "so-so"]
    assert [r["text"] for r in result["results"]] == ["a bright film", "dull"]
    assert [r["label"] for r in result["results"]] == ["good", "bad"]
    found = programs.run("trainer.predict", workdir, "--text=" + "mid " * 90)
    assert found.stdout.split()[:5] == ["text", "label", "bad", "good", "so-so"]
    assert "1 of 1 texts are longer than the 24 tokens" in found.stderr
    path.write_text("dull\n\nfine\n")
    for arguments, phrase in (
        ([], "Give either `--text` or `--text_file`"),
        (["--text=a", f"--text_file={path}"], "Give either"),
        ([f"--text_file={path}"], "line 2 of 3"),
        (["--text= "], "must hold a word"),
        ([f"--text_file={tmp_path / 'none'}"], "must be a file of UTF-8 text"),
    ):
        assert_refused(programs.run("trainer.predict", workdir, *arguments), phrase)


@pytest.mark.slow
def test_programs_refuse_the_other_kind_of_model(trained, small_run, tmp_path):
    classifier_, model = f"--workdir={trained / 'run'}", f"--workdir={small_run}/run"
    for *command, phrase in (
        ("trainer.generate", classifier_, "Use `trainer.predict`"),
        ("trainer.demo", classifier_, "--port=0", "Use `trainer.predict`"),
        ("trainer.predict", model, "--text=x", "Received: a language model"),
        (
            *("trainer.export", classifier_, "--format=saved_model"),
            *(f"--output_dir={tmp_path / 'out'}", "Received: saved_model"),
        ),
    ):
        assert_refused(programs.run(*command), phrase)


def test_a_language_model_does_not_start_from_a_classifier(trained):
    config = tiny_config(num_steps=1)
    config.model.initial_checkpoint = str(trained / "exported")
    with pytest.raises(UserError, match="a classifier of bad, good, so-so"):
        train(
            config, str(trained / "data"), str(trained / "lm"), Cluster(mirror_cpu(1))
        )
    assert classifier.labels_of(GPT2.load(str(trained / "exported")).config) == (
        *("bad", "good", "so-so"),
    )
