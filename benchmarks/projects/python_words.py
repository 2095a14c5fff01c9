"""Words of Python's own source, each tagged with its syntactic role by its neighbours."""

from __future__ import annotations

import argparse
import ast
import difflib
import doctest
import inspect
import io
import keyword
import optparse
import subprocess
import tarfile
import tokenize
import typing
from collections.abc import Iterator

SOURCES = (argparse, inspect, typing, subprocess, ast, optparse, tarfile, doctest, difflib)
PLAIN = {tokenize.NUMBER: "NUMBER", tokenize.STRING: "STRING", tokenize.OP: "SIGN"}
ENDS = (tokenize.NEWLINE, tokenize.ENDMARKER)


def sentences(shortest: int = 4, longest: int = 25) -> Iterator[list[tuple[str, str]]]:
    """Logical lines as (word, tag), in the order of the files."""
    for module in SOURCES:
        line: list[tokenize.TokenInfo] = []
        for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(module)).readline):
            if token.type == tokenize.NAME or token.type in PLAIN:
                line.append(token)
            elif token.type in ENDS:
                if shortest <= len(line) <= longest:
                    yield [
                        (one.string[:20].replace(" ", "_"), _tag(line, i))
                        for i, one in enumerate(line)
                    ]
                line = []


def _word(token: tokenize.TokenInfo) -> str:
    return token.string[:20].replace(" ", "_")


def _tag(line: list[tokenize.TokenInfo], index: int) -> str:
    token = line[index]
    if token.type in PLAIN:
        return PLAIN[token.type]
    if keyword.iskeyword(token.string):
        return "KEYWORD"
    before = line[index - 1].string if index else ""
    after = line[index + 1].string if index + 1 < len(line) else ""
    if before in ("def", "class"):
        return before.upper()
    if line[0].string in ("from", "import"):
        return "MODULE"
    if line[0].string == "def" and before in ("(", ",", "*", "**"):
        return "PARAMETER"
    if before == ".":
        return "METHOD" if after == "(" else "ATTRIBUTE"
    if after == "=" and index:
        return "ARGUMENT"
    return "CALLED" if after == "(" else "NAME"
