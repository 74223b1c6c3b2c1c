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

ROOT = Path(__file__).parent.parent

# From the bottom up: a module imports only from those above it in this list. Imports for type checkers alone are free.
# fmt: off
ORDER = [
    "errors", "locate", "rng", "yamlfile", "profiles", "library", "hybrid", "memory", "spec", "batch", "links",
    "state", "cluster", "estimates", "room", "metrics", "world", "facade", "machine_views", "views", "actions",
    "knapsack", "decision", "costs", "prices", "policy", "catalogue", "tables", "catalogue_tables", "trace_files",
    "trace_columns", "trace", "importers", "generate", "workload", "build", "transfers", "resizing", "kv", "sharing",
    "preemption", "serving", "loading", "gate", "asking", "engine", "summary", "results", "runner", "cli", "__main__",
]
# fmt: on
# The only homes of these imports.
HOMES = {"simpy": ("engine",), "matplotlib": ("plots",), "seaborn": ("plots",)}
# What a run took to compute is reported by these; nothing else knows what time it is.
CLOCKS = ("engine", "cli", "runner", "tables")
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_POLICY, MOST_PARAMETERS = 70, 400, 250, 7


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


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
            module = node.module or ""
            yield from ((f"{module}.{alias.name}" if module == "sim" else module, node.lineno) for alias in node.names)
        elif not is_type_checking(node):
            yield from imports(node)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# --- arrows


def test_the_order_lists_every_module() -> None:
    found = {path.stem for path in files("sim")} - {"__init__"}
    assert found - set(ORDER) == set(), "put it where it belongs in ORDER"
    assert set(ORDER) - found == set()


@named(files("sim"))
def test_arrows_point_down(path: Path) -> None:
    if path.stem == "__init__":
        return  # names the public names, and loads them when they are asked for
    below = ORDER[: ORDER.index(path.stem)]
    for name, line in imports(tree_of(path)):
        package, _, module = name.partition(".")
        assert package != "policies", f"{path.name}:{line}: sim finds policies by name, it never imports them"
        if package == "sim" and module == "" and path.stem in ("cli", "results"):
            continue  # for the version
        if package == "sim":
            assert module in below, f"{path.name}:{line}: {path.stem} is below {module or 'the package itself'}"


@named(OURS)
def test_heavy_imports_stay_at_home(path: Path) -> None:
    for name, line in imports(tree_of(path)):
        package = name.split(".")[0]
        if package in HOMES and path.parent.name in ("sim", "policies"):
            assert path.stem in HOMES[package], f"{path.name}:{line}: {package} belongs into {HOMES[package]}"


# --- sizes


@named(OURS)
def test_a_file_fits_in_the_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    most = LONGEST_POLICY if path.parent.name == "policies" else LONGEST_FILE
    assert lines <= most, f"{path.name} has {lines} lines"


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
    if path.stem in CLOCKS and path.parent.name == "sim":
        return
    names = r"\b(time\.time|time\.monotonic|perf_counter|process_time|datetime\.now|utcnow|date\.today)\b"
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        assert not re.search(names, line), f"{path.name}:{number}: {line.strip()}"


@named(RUNNING)
def test_random_numbers_come_from_named_streams(path: Path) -> None:
    if path.stem == "rng":
        return
    for name, line in imports(tree_of(path)):
        assert name.split(".")[0] != "random", f"{path.name}:{line}: use sim.rng.stream"
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
