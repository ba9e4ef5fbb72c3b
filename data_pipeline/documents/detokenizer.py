"""Undoes the word tokenization in which a corpus was published.

GPT-2's zero-shot results on WikiText are measured on detokenized text; source: Radford
et al., "Language Models are Unsupervised Multitask Learners" (2019), section 3.1.
"""

import re

_WIKITEXT = [
    # Numbers and hyphens: "1 @,@ 000", "3 @.@ 5", "well @-@ known".
    (re.compile(r" @([,.-])@ "), r"\1"),
    # "= = Title = =" marks a heading of the second level.
    (re.compile(r"= (?==)"), "="),
    # Punctuation follows a word without a space.
    (re.compile(r" ([.,;:!?%)\]}])"), r"\1"),
    (re.compile(r"([(\[{$£€]) "), r"\1"),
    # Contractions and possessives: "it 's", "do n't", "the boys ' room".
    (re.compile(r" (n't|'(?:s|re|ve|d|m|ll))\b"), r"\1"),
    (re.compile(r"(?<=s) ' (?=\w)"), "' "),
    # No space inside a pair of double quotes on one line.
    (re.compile(r'" ([^"\n]*?) "'), r'"\1"'),
    # "1990 – 95" is a range.
    (re.compile(r"(?<=\d) – (?=\d)"), "–"),
    # Lines begin and end with a space.
    (re.compile(r"^ | $", re.MULTILINE), ""),
]


def detokenize(text: str, name: str) -> str:
    """Returns the text as it is written outside the corpus.

    Args:
      text: a document, or whole lines of it.
      name: of the corpus, "wikitext", or "none", which changes nothing.
    """
    if name == "wikitext":
        for pattern, replacement in _WIKITEXT:
            text = pattern.sub(replacement, text)
    return text
