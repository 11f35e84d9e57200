# SPDX-License-Identifier: Apache-2.0
"""Sources as house.py sees them: their functions, and their text without comments and strings.

C++ is read without a parser: what looks like a function body is one.
"""

from __future__ import annotations

import ast
import io
import keyword
import pathlib
import re
import tokenize
from typing import NamedTuple

CPP_KEYWORDS = (
    *("auto", "bool", "break", "case", "char", "class", "const", "constexpr", "continue", "default", "do"),
    *("double", "else", "enum", "explicit", "extern", "false", "float", "for", "if", "inline", "int", "long"),
    *("namespace", "noexcept", "nullptr", "operator", "override", "private", "public", "return", "short"),
    *("signed", "sizeof", "static", "static_assert", "static_cast", "struct", "switch", "template", "this"),
    *("true", "typedef", "typename", "union", "unsigned", "using", "virtual", "void", "volatile", "while"),
)


class Function(NamedTuple):
    file: str
    name: str
    lines: int
    parameters: int
    tokens: int
    is_kernel: bool = False

    @property
    def place(self) -> str:
        return f"{self.file}:{self.name}"


class Source(NamedTuple):
    """A file: `code` is its text without comments and strings."""

    file: str
    text: str
    code: str
    functions: list[Function]

    @property
    def language(self) -> str:
        return "py" if self.file.endswith(".py") else "cc"

    @property
    def identifiers(self) -> list[str]:
        keywords = keyword.kwlist if self.language == "py" else CPP_KEYWORDS
        return [name for name in re.findall(r"\b[A-Za-z_]\w*", self.code) if name not in keywords]


# Python


SKIPPED = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)
# Python 3.12 and later see an f-string as many tokens; here it is one, as it was before.
FSTRING_START, FSTRING_END = (getattr(tokenize, f"FSTRING_{end}", None) for end in ("START", "END"))


def python_tokens(text: str) -> list[tokenize.TokenInfo]:
    found, depth = [], 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == FSTRING_START:
            depth += 1
            if depth == 1:
                found.append(token._replace(type=tokenize.STRING))
        elif token.type == FSTRING_END:
            depth -= 1
        elif depth == 0 and token.type not in SKIPPED:
            found.append(token)
    return found


def python_function(
    file: str, node: ast.FunctionDef | ast.AsyncFunctionDef, lines_of_tokens: list[int]
) -> Function:
    docstring = ast.get_docstring(node, clean=False)
    body = node.body if docstring is None else node.body[1:]
    last = node.end_lineno or 0
    arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return Function(
        file,
        node.name,
        lines=last - node.lineno + 1 - len((docstring or "").splitlines()),
        parameters=sum(name not in ("self", "cls") for name in arguments),
        tokens=sum(body[0].lineno <= line <= last for line in lines_of_tokens) if body else 0,
    )


def python_source(file: str, text: str) -> Source:
    tokens = python_tokens(text)
    lines = [token.start[0] for token in tokens]
    nodes = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    functions = [python_function(file, node, lines) for node in nodes]
    code = [""] * len(text.splitlines())
    for token in tokens:
        if token.type != tokenize.STRING:
            code[token.start[0] - 1] += f" {token.string}"
    return Source(file, text, "\n".join(code), functions)


# C++

NOT_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
AFTER_PARAMETERS = re.compile(r"\)(?:\s*(?:const|noexcept|override|final))*\s*(?:->[^(){};]*)?$")
NAME = re.compile(r"([~\w]+)\s*$")
NO_FUNCTION = {"if", "for", "while", "switch", "catch", "return", "asm", "alignas", "decltype", "sizeof"}


def without_comments(text: str) -> str:
    """The same lines, with blanks for comments and strings; `1'000` is a number, not a string's begin."""
    text = re.sub(r"(?<=[0-9])'(?=[0-9])", "", text)
    return NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def matching(code: str, start: int) -> int:
    depth = 0
    for match in re.finditer(r"[{}]", code[start:]):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return start + match.start()
    return len(code)


def count_parameters(arguments: str) -> int:
    flat, previous = arguments, ""
    while flat != previous:
        previous, flat = flat, re.sub(r"<[^<>]*>|\([^()]*\)", "", flat)
    return 0 if flat.strip() in ("", "void") else flat.count(",") + 1


def opening(code: str, close: int) -> int:
    """Where the parenthesis that is closed at `close` was opened; -1 if before this code."""
    depth = 0
    for i in range(close, -1, -1):
        depth += (code[i] == ")") - (code[i] == "(")
        if depth == 0:
            return i
    return -1


def function_head(code: str) -> tuple[str, str] | None:
    """(name, parameters) of the function whose body begins after this code; None if it is another block."""
    while (end := AFTER_PARAMETERS.search(code)) is not None:
        start = opening(code, end.start())
        name = NAME.search(code[:start]) if start > 0 else None
        if name is None or name[1] in NO_FUNCTION:
            return None  # a lambda, or a statement
        before = code[: name.start()].rstrip()
        if before.endswith(",") or (before.endswith(":") and not before.endswith("::")):
            code = before[:-1].rstrip()  # a member that a constructor initialises
            continue
        return (name[1], code[start + 1 : end.start()]) if before else None
    return None


def cpp_source(file: str, text: str) -> Source:
    code = without_comments(text)
    code = re.sub(r"^[ \t]*#.*$", "", code, flags=re.MULTILINE)
    functions = []
    for brace in re.finditer(r"\{", code):
        begin = max(code.rfind(mark, 0, brace.start()) for mark in ";{}") + 1
        declaration, body = code[begin : brace.start()], code[brace.start() : matching(code, brace.start())]
        head = function_head(declaration.rstrip())
        if head is not None:
            lines = declaration.strip().count("\n") + body.count("\n") + 1
            tokens = len(re.findall(r"\w+|[^\w\s]", body))
            count, is_kernel = count_parameters(head[1]), "__global__" in declaration
            functions.append(Function(file, head[0], lines, count, tokens, is_kernel))
    return Source(file, text, code, functions)


READERS = {".py": python_source} | dict.fromkeys((".h", ".cc", ".cu", ".cuh"), cpp_source)


def read(folder: pathlib.Path, root: pathlib.Path) -> list[Source]:
    """All sources in a folder, with their paths from the root."""
    files = sorted(file for file in folder.rglob("*") if file.suffix in READERS)
    return [READERS[file.suffix](file.relative_to(root).as_posix(), file.read_text()) for file in files]
