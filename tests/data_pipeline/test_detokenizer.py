"""The detokenizer restores WikiText as it was written."""

import pytest

from data_pipeline.documents.detokenizer import detokenize


@pytest.mark.parametrize(
    ("tokenized", "written"),
    [
        (" = Robert Boulter = \n", "= Robert Boulter =\n"),
        (" = = Career = = \n", "== Career ==\n"),
        (" = = = 2000 – 2005 = = = \n", "=== 2000–2005 ===\n"),
        ("a well @-@ known film", "a well-known film"),
        ("1 @,@ 000 and 3 @.@ 5 %", "1,000 and 3.5%"),
        ('He said , " it \'s fine . "', 'He said, "it\'s fine."'),
        ("they do n't know ; we 'll see", "they don't know; we'll see"),
        ("the boys ' room", "the boys' room"),
        ("( see below )", "(see below)"),
        ("[ sic ] , $ 5", "[sic], $5"),
    ],
)
def test_wikitext_is_restored(tokenized, written):
    assert detokenize(tokenized, "wikitext") == written


def test_none_leaves_the_text_alone():
    assert detokenize(" a @-@ b ", "none") == " a @-@ b "
