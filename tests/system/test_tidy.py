"""The house rules as tests (architecture): arrows point down, functions fit a screen, and nothing depends on chance.

Every rule names the file and the line that breaks it. The rules are about our own text; ruff and mypy do the rest.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from grimp import build_graph
from importlinter.cli import lint_imports
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tests.support.places import ROOT

# The only homes of these imports.
HOMES = {"simpy": ("clock",), "matplotlib": ("plots",), "seaborn": ("plots",)}
HOMES |= {"torch": ("hardware",), "safetensors": ("hardware",)}
# What a run took to compute is reported by these, and the package hardware measures time; nothing else knows it.
CLOCKS = ("sim/engine/engine.py", "sim/runs/", "sim/hardware/", "sim/cli/")
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_POLICY, MOST_PARAMETERS, MOST_FILES = 70, 400, 250, 7, 30


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def packages(path: Path) -> tuple[str, ...]:
    """The folders that a file is in, from the top: ("sim", "formats")."""
    return path.relative_to(ROOT).parent.parts


OURS = files("sim", "policies", "scripts", "tests")
RUNNING = files("sim", "policies")  # what a simulation is made of


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(dotted name, line) of every import, those inside functions too, those for type checkers alone not."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", node.lineno
        elif not is_type_checking(node):
            yield from imports(node)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# --- arrows


def test_packages_stand_on_floors_and_arrows_point_down() -> None:
    """The contracts of import-linter in pyproject.toml, which the command lint-imports tells more of."""
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_logo=True, no_cache=True) == 0


def circles() -> list[list[str]]:
    """Modules that import each other in a round, those for type checkers too."""
    graph = build_graph("sim", "policies", cache_dir=None)
    names = sorted(graph.modules)
    imported = [graph.find_modules_directly_imported_by(name) for name in names]
    arrows = csr_array([[other in found for other in names] for found in imported])
    _, rounds = connected_components(arrows, connection="strong")
    found = {number: [name for name, place in zip(names, rounds, strict=True) if place == number] for number in rounds}
    return [members for members in found.values() if len(members) > 1]


def test_hardly_a_circle_and_none_is_large() -> None:
    found = circles()
    assert len(found) <= 2, found
    for modules in found:
        assert len(modules) <= 3, modules
        assert len({name.rpartition(".")[0] for name in modules}) == 1, modules  # all in one folder


def test_no_file_of_sim_is_loose() -> None:
    assert sorted(path.name for path in (ROOT / "sim").glob("*.py")) == ["__init__.py", "__main__.py"]


@named(OURS)
def test_heavy_imports_stay_at_home(path: Path) -> None:
    for name, line in imports(tree_of(path)):
        package = name.split(".")[0]
        if package in HOMES and packages(path)[0] in ("sim", "policies"):
            at_home = any(place in HOMES[package] for place in (*packages(path), path.stem))
            assert at_home, f"{path.name}:{line}: {package} belongs into {HOMES[package]}"


@named(OURS)
def test_nobody_edits_where_modules_are_found(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call | ast.Assign | ast.AugAssign):
            text = ast.unparse(node)
            assert not re.match(r"sys\.path(\[| [+=]|\.(insert|append|extend)\b)", text), f"{path.name}:{node.lineno}"


# --- sizes


@named(OURS)
def test_a_file_fits_in_the_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most = LONGEST_POLICY if path.parent.name == "policies" and packages(path)[0] == "policies" else LONGEST_FILE
    assert lines <= most, f"{path.name} has {lines} lines"


@pytest.mark.parametrize("top", ["sim", "tests"])
def test_a_folder_is_read_at_a_glance(top: str) -> None:
    for folder in (path for path in (ROOT / top).rglob("*") if path.is_dir() and any(path.glob("*.py"))):
        number = sum(path.is_file() for path in folder.iterdir())
        assert number <= MOST_FILES, f"{folder.relative_to(ROOT)} has {number} files"
    loose = [path.name for path in (ROOT / top).glob("*.py") if path.name not in ("__init__.py", "__main__.py")]
    assert loose == []


@named(OURS)
def test_a_function_fits_a_screen(path: Path) -> None:
    for function in functions(tree_of(path)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        assert lines <= LONGEST_FUNCTION, f"{path.name}:{function.lineno}: {function.name} has {lines} lines"


@named(RUNNING)
def test_parameters_can_be_counted_on_fingers(path: Path) -> None:
    for function in functions(tree_of(path)):
        if any("command" in ast.unparse(decorator) for decorator in function.decorator_list):
            continue  # the options of a command-line verb
        arguments = function.args
        names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        number = len([name for name in names if name not in ("self", "cls")])
        assert number <= MOST_PARAMETERS, f"{path.name}:{function.lineno}: {function.name} takes {number}"


@named(OURS)
def test_every_module_says_what_it_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(tree_of(path)), path.name


# --- chance


def test_a_class_name_means_one_thing() -> None:
    """In what a run is made of; a policy's own `Parameters` stand within its class."""
    homes: dict[str, list[str]] = {}
    for path in RUNNING:
        for node in tree_of(path).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


def is_set(node: ast.AST) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.BitOr | ast.BitAnd | ast.BitXor):
        return is_set(node.left) or is_set(node.right)
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("set", "frozenset")


def set_names(tree: ast.AST) -> list[str]:
    """What is assigned a set, or said to be one."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_set(node.value):
            names += [ast.unparse(target) for target in node.targets]
        elif isinstance(node, ast.AnnAssign) and re.match(r"(frozen)?set\b", ast.unparse(node.annotation)):
            names.append(ast.unparse(node.target))
        elif isinstance(node, ast.arg) and re.match(r"(frozen)?set\b", ast.unparse(node.annotation or ast.Pass())):
            names.append(node.arg)
    return names


def walks_over_a_set(tree: ast.AST) -> Iterator[int]:
    """Lines that go through a set in its own order; sorted(), len(), min(), any() and the like do not depend on it."""
    names = set_names(tree)

    def unordered(node: ast.AST) -> bool:
        return is_set(node) or (isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in names)

    for node in ast.walk(tree):
        if isinstance(node, ast.For | ast.comprehension) and unordered(node.iter):
            yield getattr(node, "lineno", node.iter.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("list", "tuple", "enumerate", "next", "iter"):
            yield from (node.lineno for argument in node.args if unordered(argument))
        elif isinstance(node, ast.Starred) and unordered(node.value):
            yield node.lineno


@named(RUNNING)
def test_nothing_goes_through_a_set(path: Path) -> None:
    # Their order changes from run to run. A comprehension that sorted() or a set takes in at once is as it should be.
    tree = tree_of(path)
    harmless = [
        comprehension.iter.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("sorted", "min", "max", "sum", "any", "all", "len")
        for argument in node.args
        if isinstance(argument, ast.GeneratorExp | ast.ListComp)
        for comprehension in argument.generators
    ]
    bad = [line for line in walks_over_a_set(tree) if line not in harmless]
    assert not bad, f"{path.name}:{bad[0]}: the order of a set is chance; sort it, or use a dict"


@named(RUNNING)
def test_nothing_knows_what_time_it_is(path: Path) -> None:
    if path.relative_to(ROOT).as_posix().startswith(CLOCKS):
        return
    names = r"\b(time\.time|time\.monotonic|perf_counter|process_time|datetime\.now|utcnow|date\.today)\b"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert not re.search(names, line), f"{path.name}:{number}: {line.strip()}"


@named(RUNNING)
def test_random_numbers_come_from_named_streams(path: Path) -> None:
    if path.stem == "rng":
        return
    for name, line in imports(tree_of(path)):
        assert name.split(".")[0] != "random", f"{path.name}:{line}: use sim.common.rng.stream"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert not re.search(r"\b(default_rng|random\.seed|Generator|RandomState)$", called), (
                f"{path.name}:{called}"
            )
            assert called not in ("hash", "id"), f"{path.name}:{node.lineno}: {called}() differs from run to run"


# --- text


# Written so that this file does not break its own rule.
MARKS = re.compile(r"\b(T[O]DO|F[I]XME|X[X]X|H[A]CK)\b")
PLACES = re.compile(r"(?<![\w.:/])/(?:work|home|root|Users|mnt)/(?=\w)|[A-Z]:\\+Users")
TEXTS = [*OURS, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "pyproject.toml") if (ROOT / name).exists())]
TEXTS += sorted((ROOT / "notebooks").glob("*.*"))
TEXTS += [ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS += sorted((ROOT / "profiles").glob("*.*")) + sorted((ROOT / "traces").glob("**/*.yaml"))


@named(TEXTS)
@pytest.mark.parametrize("pattern", [MARKS, PLACES], ids=["left for later", "a path of one machine"])
def test_a_text_is_finished_and_at_home_anywhere(path: Path, pattern: re.Pattern[str]) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert not pattern.search(line), f"{path.name}:{number}: {line.strip()[:100]}"


@named(OURS)
def test_no_error_is_swallowed_unseen(path: Path) -> None:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}: say which error"
            silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
            broad = ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (silent and broad), f"{path.name}:{node.lineno}: every error passes here"


# --- the rules themselves


@pytest.mark.parametrize(
    ("finds", "source", "clean"),
    [
        (walks_over_a_set, "for x in {1, 2}: pass", "for x in sorted({1, 2}): pass"),
        (walks_over_a_set, "found = set()\nlist(found)", "found = set()\nlen(found)"),
        (
            walks_over_a_set,
            "def f(names: set[str]): return [n for n in names]",
            "def f(names: list[str]): return names",
        ),
        (walks_over_a_set, "[*({1} | other)]", "[*dict.fromkeys(other)]"),
        (imports, "def f():\n    import simpy", "if TYPE_CHECKING:\n    import simpy"),
    ],
)
def test_the_rules_find_what_they_look_for(
    finds: Callable[[ast.AST], Iterator[object]], source: str, clean: str
) -> None:
    assert list(finds(ast.parse(source)))
    assert not list(finds(ast.parse(clean)))


@pytest.mark.parametrize("line", ["# {}DO: later", "path = '{}work/here'", "open('{}home/me/x')"])
def test_the_patterns_find_what_they_look_for(line: str) -> None:
    text = line.format("TO" if "DO" in line else "/")
    assert MARKS.search(text) or PLACES.search(text)
    assert not MARKS.search(line)
    assert not PLACES.search("https://example.org/work/x sim/home/x")
