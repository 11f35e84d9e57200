# SPDX-License-Identifier: Apache-2.0
"""The rules of HACKING.md that can be counted: python .ci/house.py [FOLDER]

Prints what it counts in every part of the tree, then the places that break a rule.
"""

from __future__ import annotations

import ast
import pathlib
import re
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator

from sources import Source, read

FILE_LINES = 300
FUNCTION_LINES = 40
KERNEL_LINES = 95  # a CUDA kernel is one algorithm, whose state is in registers: it has few places to be cut
PARAMETERS = 6
BODY_TOKENS = {"flax_layers": 300}  # of nine in ten Python functions; layers name every option of Flax twice
USUAL_BODY_TOKENS = 150
MOST_BODY_TOKENS = 400  # of each
ONE_LETTER = {"cc": 0.10, "py": 0.10}  # share of identifiers, per part
PARTS = ("jax_na", "flax_layers", "benchmarks", "common", "cpu", "cuda", "simt")
PACKAGES = ("jax_na", "flax_layers", "benchmarks")  # whose imports must not run in a circle
# Public functions and layers, whose parameters are the options of attention; and their like.
MANY_PARAMETERS = (
    r"na[123]d|neighborhood_\w+|flops|region_attention|sharded_\w+|jax_na/api/\w+\.py:\w+|flax_layers/(models/)?\w+\.py:\w+"
    # What Python calls with keywords, or through ctypes.
    r"|common/call/binding\.h:make_query|simt/(conformance|faulty|harness)/\w+\.cc:\w+"
)
# Functions that may be longer: module definitions are lists, Flax's convention names each option twice, and
# parts of a CUDA kernel share state that is in registers.
LONG_FUNCTIONS = (
    r"NB_MODULE|flax_layers/nnx\.py:__init__|cuda/\w+/\w+\.cuh:(attend|for_each_score_gradient|load_tokens)"
)
# One name per idea: identifiers that have a better one (HACKING.md's words).
WORDS = {
    r"dbias|d_bias": "drpb",
    r"k?[Bb]eside|[Mm]ore": "tokens",
    r"enum class Rows": "Side",
}


def ninth_decile(numbers: list[int]) -> float:
    return statistics.quantiles(numbers, n=10)[-1] if len(numbers) > 1 else 0


def one_letter(sources: Iterable[Source]) -> float:
    names = [name for source in sources for name in source.identifiers]
    return sum(len(name) == 1 for name in names) / max(len(names), 1)


# The rules: each yields sentences


def long_files(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        lines = len(source.text.splitlines())
        if lines > FILE_LINES:
            yield f"{source.file}: {lines} lines, at most {FILE_LINES}"


def large_functions(sources: Iterable[Source]) -> Iterator[str]:
    for function in (f for source in sources for f in source.functions):
        most = KERNEL_LINES if function.is_kernel else FUNCTION_LINES
        if function.lines > most and not re.search(LONG_FUNCTIONS, function.place):
            yield f"{function.place}: {function.lines} lines, at most {most}"
        if function.parameters > PARAMETERS and not re.search(rf"(^|:){MANY_PARAMETERS}$", function.place):
            yield f"{function.place}: {function.parameters} parameters, at most {PARAMETERS}"
        if function.file.endswith(".py") and function.tokens > MOST_BODY_TOKENS:
            yield f"{function.place}: {function.tokens} tokens, at most {MOST_BODY_TOKENS}"


def packed_parts(parts: dict[str, list[Source]]) -> Iterator[str]:
    for part, sources in parts.items():
        tokens = [f.tokens for s in sources if s.language == "py" for f in s.functions]
        most_tokens = BODY_TOKENS.get(part, USUAL_BODY_TOKENS)
        if ninth_decile(tokens) > most_tokens:
            yield f"{part}: one function in ten has {ninth_decile(tokens):.0f} tokens, at most {most_tokens}"
        for language, most in ONE_LETTER.items():
            share = one_letter(s for s in sources if s.language == language)
            if share > most:
                yield f"{part}: {share:.1%} of the identifiers have one letter, at most {most:.0%}"


def forbidden_words(sources: Iterable[Source]) -> Iterator[str]:
    for source in sources:
        for pattern, better in WORDS.items():
            for word in sorted(set(re.findall(rf"\b(?:{pattern})\b", source.code))):
                line = 1 + next(i for i, text in enumerate(source.code.splitlines()) if word in text)
                yield f"{source.file}:{line}: {word}, the word for it is {better}"


# Imports


def package_of(module: str, packages: set[str]) -> str:
    """The longest package that holds a module, or the module itself where it lies in none but the top one."""
    parts = module.split(".")
    held = [p for i in range(len(parts), 1, -1) if (p := ".".join(parts[:i])) in packages]
    return held[0] if held else ".".join(parts[:2])


def imports(source: Source, package: str) -> Iterator[str]:
    """The modules that a file imports, with names that may be attributes."""
    for node in ast.walk(ast.parse(source.text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(sources: Iterable[Source]) -> dict[str, set[str]]:
    """Which package imports which; `__init__` of the top imports all of them and does not count."""
    files = [s for s in sources if s.language == "py" and s.file.split("/")[0] in PACKAGES]
    folders = {str(pathlib.PurePosixPath(s.file).parent).replace("/", ".") for s in files}
    graph: dict[str, set[str]] = defaultdict(set)
    for source in files:
        path = pathlib.PurePosixPath(source.file)
        folder = str(path.parent).replace("/", ".")
        if path.stem == "__init__" and "." not in folder:
            continue
        own = package_of(f"{folder}.{path.stem}", folders - set(PACKAGES))
        for module in imports(source, folder):
            if module.split(".")[0] in PACKAGES and module not in PACKAGES:
                graph[own].add(package_of(module, folders - set(PACKAGES)))
        graph[own].discard(own)
    return graph


def circles(sources: Iterable[Source]) -> Iterator[str]:
    graph, done = import_graph(sources), set[str]()

    def visit(node: str, path: tuple[str, ...]) -> Iterator[str]:
        if node in path:
            yield "imports in a circle: " + " -> ".join((*path[path.index(node) :], node))
        elif node not in done:
            for following in sorted(graph.get(node, ())):
                yield from visit(following, (*path, node))
            done.add(node)

    for node in sorted(graph):
        yield from visit(node, ())


def summary(part: str, sources: list[Source]) -> str:
    functions = [f for s in sources for f in s.functions]
    lines = [len(s.text.splitlines()) for s in sources]
    longest = max((f.lines for f in functions), default=0)
    tokens = ninth_decile([f.tokens for f in functions])
    return (
        f"{part:12} {len(sources):3} files to {max(lines):3} lines, {len(functions):4} functions to "
        f"{longest:3} lines, nine in ten to {tokens:3.0f} tokens, "
        f"{one_letter(sources):5.1%} of the identifiers have one letter"
    )


def parts_of(root: pathlib.Path) -> dict[str, list[Source]]:
    parts = {part: read(root / part, root) for part in PARTS}
    return {part: sources for part, sources in parts.items() if sources}


def broken(parts: dict[str, list[Source]]) -> list[str]:
    sources = [source for part in parts.values() for source in part]
    rules = (long_files, large_functions, forbidden_words, circles)
    return [*(sentence for rule in rules for sentence in rule(sources)), *packed_parts(parts)]


def main() -> int:
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent.parent)
    parts = parts_of(root)
    print(*(summary(*part) for part in parts.items()), sep="\n")
    sentences = broken(parts)
    print(*(sentences or ["every rule holds"]), sep="\n")
    return bool(sentences)


if __name__ == "__main__":
    sys.exit(main())
