"""Finds prose that is hard to read: in docstrings, comments and pages.

Each rule is a pattern that plain technical English does without, with the reason. `found` applies
all of them and the limit on the length of a sentence.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: A sentence of more words than this is to be split.
MOST_WORDS = 40

#: What a sentence may not hold, and why.
RULES = {
    r"\bwhoever\b": "name who it is",
    r"\bwhatever (?:is|are|was|were)\b": "name it",
    r"\bthose who\b": "name them",
    r"\bfor want of\b": "say when, then what: 'if there is no ...'",
    r"\bas far as (?:it|that) goes\b": "say which part",
    r"\bwhere that is the one\b": "say when, then what",
    r"^what (?:is|was|were|has been) \w+(?:ed|en)\b": "name the thing",
    r"\bnobody else's\b": "name whose it is",
    r"\b(?:utilise|utilize|leverage)s?\b": "use",
    r"\bin order to\b": "to",
    r"\b(?:simply|obviously|of course)\b": "leave it out",
}
PATTERNS = {re.compile(pattern, re.IGNORECASE): why for pattern, why in RULES.items()}

SENTENCE = re.compile(
    r"(?<=[.!?:;])\s+(?=[A-Z0-9`*])"
    r"|\n\s*\n"  # a paragraph
    r"|\n\s*(?:[-*|]|\d\.)\s|\n\s*-{3,}"  # an item, a line
    r"|\n\s*\w[\w, *]* : [^\n]*\n"  # a parameter and its type
    r"|\n\w+\n(?= )"  # a heading
)
#: Code, and what stands in brackets, are no words of a sentence.
NO_WORDS = re.compile(r"`[^`]*`|\([^)]*\)|\[[^\]]*\]")
#: Text in a .pyx that is C.
IS_C = re.compile(r"^\s*#(?:include|define|if)|^\s*/\*", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}|~{3,}).*?^\1\s*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Finding:
    """A place, and what to do about it."""

    place: str
    line: int
    text: str
    why: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.text!r}: {self.why}"


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yields each sentence with the number of lines before it."""
    start = 0
    for split in [*SENTENCE.finditer(text), None]:
        end = split.start() if split else len(text)
        sentence = text[start:end]
        # Text in columns is a drawing or a list.
        if sentence.strip() and not re.search(r"\S {2,}\S", sentence):
            lead = len(sentence) - len(sentence.lstrip())
            yield text.count("\n", 0, start + lead), " ".join(sentence.split())
        start = split.end() if split else end


def found(place: str, line: int, text: str) -> Iterator[Finding]:
    """Yields what the rules find in a piece of prose that begins at a line."""
    for offset, sentence in sentences(text):
        for pattern, why in PATTERNS.items():
            match = pattern.search(sentence)
            if match is not None:
                yield Finding(place, line + offset, match[0], why)
        words = len(re.findall(r"[A-Za-z]{2,}", NO_WORDS.sub("x", sentence)))
        if words > MOST_WORDS:
            yield Finding(place, line + offset, sentence[:40] + " ...", f"{words} words: split it")


def of_page(path: Path) -> Iterator[tuple[int, str]]:
    """Yields the prose of a page in Markdown: what is in no fence, table or HTML comment."""
    text = path.read_text(encoding="utf-8")
    text = FENCE.sub(_blank, text)
    text = re.sub(r"<!--.*?-->", _blank, text, flags=re.DOTALL)
    text = re.sub(r"^ *\|.*$", "", text, flags=re.MULTILINE)
    yield 1, text


def _blank(match: re.Match[str]) -> str:
    """Returns as many empty lines as there are in the match."""
    return "\n" * match[0].count("\n")


def of_source(path: Path) -> Iterator[tuple[int, str]]:
    """Yields docstrings, and runs of comments on lines of their own."""
    run: list[str] = []
    first = last = 0
    begins = True
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
    for token in tokens:
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            if run and token.start[0] != last + 1:
                yield first, "\n".join(run)
                run = []
            first = first if run else token.start[0]
            last = token.start[0]
            run.append(token.string.lstrip("#: "))
        elif token.type == tokenize.STRING and begins and not IS_C.search(token.string):
            yield token.start[0], token.string.strip('rf"')
        if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT):
            begins = token.type == tokenize.NEWLINE
    if run:
        yield first, "\n".join(run)
