"""Evaluation against PyTorch's sliding window, and what a result says of itself."""

import json
import os
import pathlib

import pytest
import tensorflow as tf

from tests import programs
from tests.conftest import assert_refused, shared, tiny_model
from tfrecords import manifest as manifests
from tfrecords.windows import Windows
from trainer.evaluation import published
from trainer.evaluation.evaluator import protocol
from trainer.exporting import huggingface
from trainer.models.gpt2 import weights
from trainer.tasks import causal_lm


def sliding_window(judge, tokens, context_length, stride):
    """Perplexity by Hugging Face's recipe, in PyTorch, one window after the other."""
    import torch

    torch.set_num_threads(1)  # its threads wait for each other where others run
    total, count, scored = 0.0, 0, 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + context_length, len(tokens))
        ids = torch.tensor([tokens[begin:end]])
        labels = ids.clone()
        labels[:, : scored - begin] = -100
        with torch.no_grad():
            logits = judge(ids).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(
            logits, labels[0, 1:], reduction="none", ignore_index=-100
        )
        total += losses.double().sum().item()
        count += int((labels[0, 1:] != -100).sum())
        scored = end
        if end == len(tokens):
            break
    return total / count, count


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """WikiText-2's test split as a dataset, and a model of 1,024 positions for it."""
    folder = tmp_path_factory.mktemp("wikitext")
    found = programs.run(
        "data_pipeline.preprocess",
        "--config=configs/wikitext2_cpu.py",
        "--config.data.vocab_size=1024",
        "--config.data.sequence_length=1024",
        "--config.model.n_positions=1024",
        f"--input={shared('wikitext-2/wiki.valid.tokens')}",
        f"--validation_input={shared('wikitext-2/wiki.test.tokens')}",
        f"--output_dir={folder / 'data'}",
    )
    assert found.returncode == 0, found.stderr
    gpt2 = tiny_model(n_layer=1, n_positions=1024, vocab_size=1024, n_embd=32)
    (folder / "hf").mkdir()
    tokenizer = weights.load_tokenizer(str(folder / "data" / "tokenizer"))
    huggingface.save(gpt2, tokenizer, folder / "hf", tf.float32)
    return folder / "data", folder / "hf"


@pytest.fixture(scope="module")
def excerpt(wikitext, tmp_path_factory) -> tuple[pathlib.Path, pathlib.Path]:
    """The same of a twelfth of the text, for judges that take window after window."""
    data, checkpoint = wikitext
    folder = tmp_path_factory.mktemp("excerpt")
    for name in ("valid", "test"):
        text = pathlib.Path(shared(f"wikitext-2/wiki.{name}.tokens")).read_text()
        (folder / f"{name}.tokens").write_text(text[:100_000])
    found = programs.run(
        "data_pipeline.preprocess",
        "--config=configs/wikitext2_cpu.py",
        f"--config.data.tokenizer={data / 'tokenizer'}",
        "--config.data.sequence_length=1024",
        "--config.data.num_shards=1",
        "--config.model.n_positions=1024",
        f"--input={folder / 'valid.tokens'}",
        f"--validation_input={folder / 'test.tokens'}",
        f"--output_dir={folder / 'data'}",
    )
    assert found.returncode == 0, found.stderr
    return folder / "data", checkpoint


def evaluate(data, checkpoint, *arguments):
    process = programs.run(
        "trainer.evaluate",
        f"--data_dir={data}",
        f"--checkpoint={checkpoint}",
        "--json",
        *arguments,
        XLA_FLAGS="",  # so many tokens need the optimizations that conftest leaves out
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def stream(data):
    """All tokens of the validation split."""
    written = manifests.load(str(data))
    length = written.sequence_length
    cut = {"split": "validation", "context_length": length, "stride": length}
    windows = Windows(str(data), written, **cut)
    found = windows.batches(global_batch_size=1, batch_size=1)
    tokens = [t for row in found for t in row["tokens"][0, : row["length"][0]].numpy()]
    assert len(tokens) == written.split("validation").tokens
    return [int(token) for token in tokens]


@pytest.mark.slow
@pytest.mark.parametrize("stride", [64, 512, 1024])
def test_perplexity_is_that_of_pytorch(excerpt, stride):
    pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    data, checkpoint = excerpt
    judge = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    expected, count = sliding_window(judge, stream(data), 1024, stride)
    found = evaluate(data, checkpoint, f"--stride={stride}", "--batch_size=8")
    assert found["tokens_scored"] == count
    assert found["loss"] == pytest.approx(expected, rel=1e-5)
    perplexity = pytest.approx(2.718281828459045**expected, rel=1e-4)
    assert found["token_perplexity"] == perplexity
    assert found["protocol"]["stride"] == stride


@pytest.mark.slow
def test_several_contexts_in_one_call(excerpt):
    """And the last of them as by PyTorch, over the tokens of the first windows."""
    pytest.importorskip("torch", reason="needs the extra `parity`")
    from transformers import GPT2LMHeadModel

    data, checkpoint = excerpt
    found = evaluate(
        data, checkpoint, "--context_length=256,512", "--stride=256", "--batch_size=16"
    )
    protocols = [result["protocol"] for result in found["results"]]
    assert [(p["context_length"], p["stride"]) for p in protocols] == [
        (256, 256),
        (512, 256),
    ]
    judge = GPT2LMHeadModel.from_pretrained(checkpoint).eval()
    expected, count = sliding_window(judge, stream(data), 512, 256)
    assert found["results"][1]["tokens_scored"] == count
    assert found["results"][1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_result_says_how_it_was_measured(wikitext):
    data, checkpoint = wikitext
    written = manifests.load(str(data))
    found = evaluate(data, checkpoint, "--context_length=256", "--batch_size=32")
    assert found["protocol"] == {
        "dataset": written.fingerprint[:16],
        "tokenizer": written.tokenizer_fingerprint[:16],
        "split": "validation",
        "mode": "packed",
        "detokenizer": "wikitext",
        "separators": "nothing before, the tokenizer's end-of-text after each file",
        "context_length": 256,
        "stride": 256,
        "precision": "float32",
    }
    assert found["words"] == 241_211
    assert found["published"] == []  # a folder has no known name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context_length=2048"], "the model's positions, 1024"),
        (["--context_length=all"], "Received: all"),
        (["--context_length=64", "--stride=65"], "65 with a context length of 64"),
        (["--split=train", "--context_length=64"], "random order"),
        (["--split=test"], "must be one of train, validation"),
    ],
)
def test_what_cannot_be_scored_is_one_message(wikitext, arguments, message):
    data, checkpoint = wikitext
    found = programs.run(
        "trainer.evaluate",
        f"--data_dir={data}",
        f"--checkpoint={checkpoint}",
        *arguments,
    )
    assert_refused(found, message)


def test_wikitexts_test_split_is_the_one_that_was_published(tmp_path):
    """By words, bytes and tokens of the real text, without a model of that size."""
    vocabulary = os.path.dirname(shared("gpt2-vocabulary/vocab.json"))
    found = programs.run(
        "data_pipeline.preprocess",
        "--config=configs/distilgpt2.py",
        f"--config.data.tokenizer={vocabulary}",
        "--config.data.detokenizer=wikitext",
        f"--input={shared('wikitext-2/wiki.valid.raw')}",
        f"--validation_input={shared('wikitext-2/wiki.test.raw')}",
        f"--output_dir={tmp_path / 'data'}",
    )
    assert found.returncode == 0, found.stderr
    written = manifests.load(str(tmp_path / "data"))
    split = written.split("validation")
    whole = {"split": "validation", "context_length": 1024, "stride": 1024}
    result = {
        **causal_lm.split_figures({"loss_sum": 1.0, "token_count": 1}, split),
        "protocol": protocol(written, **whole, precision="float32"),
    }
    study, _ = published.compare(result, "distilgpt2", "as published")
    assert study["figures"] == {"token_perplexity": 31.27, "word_perplexity": 48.71}
    assert study["differences"] == []
