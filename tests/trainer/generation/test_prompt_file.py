"""Prompts of a file: ids of JSONL, and one message for lines that are none."""

import pytest

from configs.errors import UserError
from trainer.generation import prompt_file
from trainer.generation.prompt_file import Prompt


def test_jsonl_has_prompts_with_ids(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "x", "prompt": "a\\nb", "other": 1}\n{"prompt": ""}\n')
    assert prompt_file.read([], str(path)) == [Prompt("a\nb", "x"), Prompt("", 2)]
    plain = tmp_path / "prompts.txt"
    plain.write_bytes(path.read_bytes())
    assert prompt_file.read([], str(plain))[1] == Prompt('{"prompt": ""}')
    plain.write_bytes(b"a\r\nb\r\n")
    assert prompt_file.read([], str(plain)) == [Prompt("a"), Prompt("b")]


@pytest.mark.parametrize(
    "line",
    ["text", '"text"', "[]", "{}", '{"prompt": 1}', '{"prompt": "a", "id": [1]}', ""],
)
def test_lines_that_are_no_prompts_are_named(tmp_path, line):
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n{{"prompt": "b"}}\n{line}\n')
    with pytest.raises(UserError, match="whose lines 2, 4 are others"):
        prompt_file.read([], str(path))
