# SPDX-License-Identifier: Apache-2.0
"""The tools of the build and of .ci: what they find, and what they let pass."""

import importlib
import itertools
import pathlib
import random
import subprocess
import sys
from typing import NamedTuple

import pytest

from . import thinning
from .simt import build

ROOT = pathlib.Path(__file__).parent.parent


def tool(name):
    """A module of .ci."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / ".ci")
        return importlib.import_module(name)


@pytest.fixture(scope="module")
def house():
    return tool("house")


def sentences(house, root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return house.broken(house.parts_of(root))


BROKEN = {
    "a long file": ({"jax_na/a.py": "x_1 = 1\n" * 301}, ["jax_na/a.py: 301 lines, at most 300"]),
    "a long function": (
        {"jax_na/a.py": "def name():\n" + "    return\n" * 41},
        ["jax_na/a.py:name: 42 lines, at most 40"],
    ),
    "a long C++ function": (
        {"cpu/a.h": "int name() {\n" + "  call();\n" * 41 + "}\n"},
        ["cpu/a.h:name: 43 lines, at most 40"],
    ),
    "many parameters": (
        {"cpu/a.h": "void name(std::array<int, 2> aa, int bb, int cc, int dd, int ee, int ff, int gg) {}\n"},
        ["cpu/a.h:name: 7 parameters, at most 6"],
    ),
    "letters": (
        {"cpu/a.h": "int name() { x = y; }\n"},
        ["cpu: 66.7% of the identifiers have one letter, at most 10%"],
    ),
    "a word": ({"cuda/a.cuh": "// dbias\nfloat* dbias;\n"}, ["cuda/a.cuh:2: dbias, the word for it is drpb"]),
    "a circle": (
        {
            "jax_na/api/first.py": "from ..rules import second\n",
            "jax_na/rules/second.py": "def late():\n    from jax_na.api.first import name\n",
        },
        ["imports in a circle: jax_na.api -> jax_na.rules -> jax_na.api"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_rules(name, house, tmp_path):
    files, expected = BROKEN[name]
    assert sentences(house, tmp_path, files) == expected


def test_what_breaks_no_rule(house, tmp_path):
    """A call with a lambda is no function of many parameters, a comment no identifier."""
    call = "  call(aa, bb, cc, dd, ee, ff, gg, [&](int value) { use(value); });  // x, y, z\n"
    files = {
        "cpu/a.h": "int name() {\n"
        + call
        + "}\nStruct::Struct(int value) : member(value), other(1'000) {}\n",
        "jax_na/api/attention.py": "def na2d(aa, bb, cc, dd, ee, ff, gg):\n    return aa\n",
        "jax_na/__init__.py": "from .api import attention\n",
    }
    assert sentences(house, tmp_path, files) == []


def test_covering():
    """Every value occurs, in far fewer rows than there are, and another order gives other rows."""
    rows = [{"case": case, "kind": kind} for case in range(20) for kind in "abcd"]
    chosen = [thinning.covering(rows, random.Random(seed)) for seed in range(2)]
    for numbers in chosen:
        assert {rows[i]["case"] for i in numbers} == set(range(20))
        assert {rows[i]["kind"] for i in numbers} == set("abcd")
        assert len(numbers) == 20
    assert chosen[0] != chosen[1]


class Problem(NamedTuple):
    features: frozenset


def test_covering_of_features():
    """Not every problem is needed, but each of their features with every value beside it."""
    problems = [Problem(frozenset(pair)) for pair in itertools.combinations("abcdef", 2)]
    rows = [{"case": problem, "kind": kind} for problem in problems for kind in (1, 2)]
    chosen = [rows[i] for i in thinning.covering(rows, random.Random(0))]
    seen = {(feature, row["kind"]) for row in chosen for feature in row["case"].features}
    assert seen == set(itertools.product("abcdef", (1, 2)))
    assert len(chosen) < len(problems)


def test_arithmetics():
    """Every one is taken by some seed."""
    chosen = {thinning.arithmetics(seed) for seed in range(32)}
    assert all(len(set(names.split(","))) == 2 for names in chosen)
    assert {name for names in chosen for name in names.split(",")} == set(build.ARITHMETICS)


@pytest.fixture
def compiled(tmp_path):
    """Compiles `a.cc` with a header in a folder of any name; returns whether the compiler had to work."""

    def run(folder, header="int value();", *flags):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "a.h").write_text(header)
        (tmp_path / "a.cc").write_text('#include "a.h"\nint value() { return 1; }\n')
        kept = tmp_path / "objects"
        before = set(kept.glob("*.o"))
        outputs = ["-MD", "-MT", "a.o", "-MF", "a.o.d", "-o", "a.o"]
        launcher = [sys.executable, "-I", "-S", str(ROOT / "cmake" / "compile_cache.py"), str(kept)]
        command = [*launcher, "g++", f"-I{place}", *flags, *outputs, "-c", "a.cc"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert str(place / "a.h") in (tmp_path / "a.o.d").read_text()
        return set(kept.glob("*.o")) != before

    return run


def test_compile_cache(compiled, tmp_path):
    """Objects are kept by content: another path is nothing new, another byte or flag is."""
    assert compiled("one")
    first = (tmp_path / "a.o").read_bytes()
    (tmp_path / "a.o").unlink()
    assert not compiled("two")
    assert (tmp_path / "a.o").read_bytes() == first
    assert compiled("two", "int value();  // changed")
    assert compiled("two", "int value();", "-O2")
    assert not compiled("one", "int value();")


def test_compile_cache_passes_on_what_it_does_not_know(compiled):
    """With debug information an object has paths in it: it is compiled each time, and nothing is kept."""
    assert not compiled("one", "int value();", "-g")


def test_compile_cache_reports_errors(compiled):
    with pytest.raises(subprocess.CalledProcessError):
        compiled("one", "int value(")


def test_steps(tmp_path, capsys):
    """They wait for what they need; the end shows times and how the tests went."""
    steps = tool("steps")
    order = []

    def step(name, *needs, text="nothing"):
        def action(run):
            run(sys.executable, "-c", f"print({text!r})")
            order.append(name)

        return steps.Step(name, action, needs)

    plan = [step("last", "first", text="3 passed, 1 skipped in 2.00s"), step("first"), step("not asked for")]
    assert steps.Plan(plan).run(["last"], tmp_path, cores=2) == 0
    assert order == ["first", "last"]
    text = capsys.readouterr().out
    assert "last: 3 passed, 1 skipped in 2.00s" in text
    assert text.endswith("all checks passed\n")


def test_steps_end_with_the_first_failure(tmp_path, capsys):
    steps = tool("steps")

    def action(code):
        return lambda run: run(sys.executable, "-c", code)

    plan = [
        steps.Step("wrong", action("print('why'); raise SystemExit(3)")),
        steps.Step("long", action("import time; time.sleep(60)")),
        steps.Step("never", action(""), needs=("wrong",)),
    ]
    assert steps.Plan(plan).run([], tmp_path, cores=2) == 1
    text = capsys.readouterr().out
    assert "why" in text
    assert "never" not in text
    assert text.endswith("failed: wrong\n")


def test_requirements_name_no_extra_of_our_own():
    """Environments of CI get what the package needs, but the package as a wheel."""
    found = tool("environments").requirements("test")
    assert any(r.startswith("jax>=") for r in found)
    assert any(r.startswith("flax>=") for r in found)
    assert not any(r.startswith("jax-na") for r in found)
