"""Tokens per byte, unknown tokens and speed of tokenizers, by family and size.

    python -m benchmarks.tokenizer_families shakespeare.txt sanguo.jsonl python

Each input is a text file, whose documents blank lines separate; JSONL with `text`; or
`python`, the source of the standard library. A tokenizer learns from nine tenths of the
documents. The figures are of the last tenth, which it has not seen; but the speed, of
all documents, is that of the first run, without loading. Seconds are of CPU time: other
programs that run beside it change them less.
"""

import argparse
import json
import pathlib
import re
import sys
import sysconfig
import time
import types
from typing import cast

import numpy as np

from configs.schema import DataConfig
from data_pipeline.job import Job
from data_pipeline.tokens import encoder, engine_choice, tokenizer


def read(name: str) -> list[str]:
    """Returns the documents of an input."""
    if name == "python":
        folder = pathlib.Path(sysconfig.get_path("stdlib"))
        return [path.read_text() for path in sorted(folder.glob("*.py"))][:120]
    text = pathlib.Path(name).read_text()
    if name.endswith(".jsonl"):
        return [json.loads(line)["text"] for line in text.splitlines()]
    return re.split(r"\n\s*\n", text)


def measure(family: str, size: int, documents: list[str]) -> dict[str, float]:
    """Trains a tokenizer of a family and returns its figures."""
    held_out = documents[9::10]
    learnt = [text for index, text in enumerate(documents) if index % 10 < 9]
    job = types.SimpleNamespace(
        config=DataConfig(tokenizer_model=family, vocab_size=size),
        n_positions=1024,
        training_texts=lambda: iter(learnt),
    )
    start = time.process_time()
    trained = tokenizer._train(cast(Job, job))
    seconds = time.process_time() - start
    tokenizer_json = trained.backend_tokenizer.to_str()
    held_out_bytes = [text.encode() for text in held_out]
    reference = encoder.ReferenceEncoder(tokenizer_json, allow_special_tokens=False)
    tokens, offsets = reference.encode(held_out_bytes)
    unknown, changed = reference.count_losses(held_out_bytes, tokens, offsets)
    result = {
        "size": len(trained),
        "CPU seconds to train": seconds,
        "tokens per byte": len(tokens) / sum(map(len, held_out_bytes)),
        "unknown tokens": unknown / len(tokens),
        "changed documents": changed / len(held_out),
    }
    every = [text.encode() for text in documents]
    engine = engine_choice.choose(
        tokenizer_json, held_out_bytes[:50], allow_special_tokens=False
    )
    for name in dict.fromkeys((encoder.REFERENCE, engine)):
        result[f"M tokens a CPU second, {name}"] = _speed(name, tokenizer_json, every)
    return result


def _speed(engine: str, tokenizer_json: str, texts: list[bytes]) -> float:
    encode = encoder.ENGINES[engine](tokenizer_json, allow_special_tokens=False).encode
    encode([b"loads the tokenizer"])
    start = time.process_time()
    tokens, _ = encode(texts)
    return len(tokens) / (time.process_time() - start) / 1e6


def main() -> None:
    """Prints a line for each tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--families", default="bpe,unigram,wordpiece")
    parser.add_argument("--sizes", default="1000,2000,4000,8000,16000,32000")
    arguments = parser.parse_args()
    for name in arguments.inputs:
        documents = read(name)
        num_bytes = sum(len(text.encode()) for text in documents)
        print(f"# {name}: {len(documents)} documents, {num_bytes:,} bytes")
        for family in arguments.families.split(","):
            for size in map(int, arguments.sizes.split(",")):
                try:
                    figures = measure(family, size, documents)
                except ValueError as error:
                    print(f"{family} {size}: {error}", file=sys.stderr)
                    continue
                rounded = {
                    k: float(np.format_float_positional(v, 4, fractional=False))
                    for k, v in figures.items()
                }
                print(json.dumps({"family": family, **rounded}), flush=True)


if __name__ == "__main__":
    main()
