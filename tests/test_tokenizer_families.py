"""A tokenizer of each family goes all the way, to the same text in PyTorch."""

import json
import pathlib

import pytest

from tests import families, programs
from tests.conftest import shared
from tests.test_end_to_end import succeed

_PROMPT = "話說曹操"


@pytest.fixture(scope="module")
def novel(tmp_path_factory) -> pathlib.Path:
    """Paragraphs of a Chinese novel, a document each."""
    text = pathlib.Path(shared("chinese/sanguo.jsonl")).read_text()
    chapters = [json.loads(line)["text"] for line in text.splitlines()[:8]]
    paragraphs = [p for chapter in chapters for p in chapter.split("\n") if p]
    path = tmp_path_factory.mktemp("novel") / "novel.jsonl"
    path.write_text("\n".join(json.dumps({"text": p}) for p in paragraphs))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["byte-level BPE", "Metaspace BPE", "WordPiece", "Unigram"]
)
def test_a_family_goes_all_the_way_to_pytorch(family, novel, tmp_path):
    """Preprocess, 50 steps, evaluate, generate, export; PyTorch's text is the same."""
    torch = pytest.importorskip("torch", reason="needs the extra `parity`")
    texts = [json.loads(line)["text"] for line in novel.read_text().splitlines()]
    (tmp_path / "tokenizer").mkdir()
    families.FAMILIES[family](tmp_path / "tokenizer", texts, 3500)
    data, workdir = f"--data_dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}"
    succeed(
        programs.run(
            "data_pipeline.preprocess",
            "--config=configs/quickstart.py",
            f"--config.data.tokenizer={tmp_path / 'tokenizer'}",
            "--config.data.allow_lossy_tokenizer",
            f"--input={novel}",
            f"--output_dir={tmp_path / 'data'}",
            "--num_workers=1",
        )
    )
    trained = succeed(
        programs.run(
            "trainer.train",
            "--config=configs/quickstart.py",
            "--config.training.num_steps=50",
            "--config.training.evaluation_interval=0",
            "--config.training.checkpoint_interval=0",
            "--config.training.steps_per_execution=50",
            "--config.optimizer.learning_rate=1e-2",
            "--config.model.n_embd=32",
            "--config.model.n_layer=1",
            "--config.tracking.sample_interval=0",
            data,
            workdir,
            "--json",
        )
    )
    after = json.loads(trained)["validation_loss_after"]
    assert after < json.loads(trained)["validation_loss_before"] - 0.2
    scored = succeed(programs.run("trainer.evaluate", data, workdir, "--json"))
    assert json.loads(scored)["loss"] == pytest.approx(after, rel=1e-5)
    flags = ("--temperature=0", "--max_new_tokens=12", "--json")
    prompt = f"--prompt={_PROMPT}"
    printed = succeed(programs.run("trainer.generate", workdir, prompt, *flags))
    (text,) = json.loads(printed)["results"][0]["texts"]
    exported = tmp_path / "exported"
    succeed(programs.run("trainer.export", workdir, f"--output_dir={exported}"))

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    # As its users do: nothing is said about special tokens, types or cleaning up.
    with torch.no_grad():
        tokens = model.generate(
            **tokenizer(_PROMPT, return_tensors="pt"),
            max_new_tokens=12,
            do_sample=False,
        )
    assert tokenizer.decode(tokens[0], skip_special_tokens=True) == text
    assert text.startswith(_PROMPT)
    assert len(text) > len(_PROMPT)
    assert type(tokens) is torch.Tensor
