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

from tests.support.places import ROOT

# From the bottom up: a module imports only from those above it in this list. Imports for type checkers alone are free.
# fmt: off
ORDER = [
    "clock", "compiled", "disk", "errors", "reading", "watch", "locate", "rng", "statistics", "yamlfile",
    "profiles", "library", "profiling.points", "profiling.heads", "profiling.merging", "profiling.measured",
    "profiling.architectures", "profiling.hardware", "profiling.imports.record", "profiling.imports.files",
    "profiling.imports.llama_bench", "profiling.imports.llama_batched_bench", "profiling.imports.ollama",
    "profiling.imports.vllm_bench", "profiling.imports.formats", "profiling.models", "profiling.settings",
    "profiling.importing", "memory", "workloads.fields", "workloads.laws", "workloads.presets",
    "workloads.spec", "faults_spec", "spec", "batch", "links", "ranking", "request", "state", "cluster",
    "estimates", "room", "columns", "series", "timeline", "metrics", "world", "facade", "machine_views",
    "request_view", "views", "actions", "knapsack", "decision", "costs", "keepalive", "replicas", "prices",
    "fairness", "sequencing", "slack", "standing", "swapping", "turns", "feedback", "virtual_queues", "pressure",
    "future", "boxes", "swap_queue", "eviction", "combinations", "policy", "ideal", "catalogue", "breakeven",
    "measures", "tables", "catalogue_tables", "profiling.physics", "profiling.fitting", "profiling.collect",
    "profiling.sweeps", "profiling.grids", "profiling.switching", "profiling.nearest", "profiling.publish",
    "profiling.fill", "profiling.check", "profiling.check_tables", "profiling.portrait", "amounts", "choice",
    "traces.blocks", "traces.files", "traces.columns", "traces.trace", "traces.extras", "traces.order",
    "traces.stream", "traces.write", "traces.shape", "traces.models", "traces.overlay", "traces.spread",
    "traces.facts", "traces.assign", "formats", "workloads.draws", "workloads.rates", "workloads.popularity",
    "workloads.arrivals", "workloads.prefixes", "workloads.flows", "workloads.sessions", "workloads.merging",
    "workloads.generate", "workload", "build", "bounds.machines", "bounds.demand", "bounds.curves",
    "bounds.packing", "bounds.program", "bounds.fluid", "bounds.alone", "bounds.pooled", "bounds.places",
    "bounds.schedule", "bounds.together", "traces.load", "traces.recipe", "traces.composition", "traces.shorthand",
    "traces.jobs", "traces.tables", "plots.traces", "plots.style", "plots.charts", "plots.time_charts",
    "plots.run_figures", "plots.figures", "plots.profile_figures", "transfers", "resizing", "kv", "sharing",
    "preemption", "serving", "loading", "losses", "faults", "gate", "asking", "progress", "feed", "engine",
    "request_table", "faults_summary", "diagnosis", "summary", "results", "timeline_file",
    "hardware.options", "hardware.model.resident_pages", "hardware.model.device", "hardware.model.weights",
    "hardware.model.transformer", "hardware.measure.timing", "hardware.measure.measurement_folder",
    "hardware.measure.machine_facts", "hardware.measure.plan", "hardware.measure.progress_lines",
    "hardware.measure.model_measurements", "hardware.measure.contradictions", "hardware.measure.machine_bandwidths",
    "hardware.measure.contention", "hardware.measure.measurement_run", "hardware.measure.write_tables",
    "hardware.measure.program", "hardware.server.serving", "hardware.server.loading", "hardware.server.server",
    "hardware.validate.experiment", "hardware.validate.closed_loop", "hardware.validate.error_table",
    "hardware.validate.program",
    "runner", "run",
    "conformance.hardware", "conformance.laws", "conformance.cases", "conformance.subject", "conformance.source",
    "conformance.watching", "conformance.checks", "conformance.suite", "conformance.keeping", "conformance.tables",
    "authoring", "sweeps.task", "sweeps.collect", "sweeps.store", "sweeps.axes", "sweeps.identity", "sweeps.worker",
    "sweeps.crew", "sweeps.local_crew", "sweeps.dask_crew", "sweeps.ray_crew", "sweeps.crews", "sweeps.execute",
    "sweeps.grid", "sweeps.merge", "sweeps.sweep", "sweeps.tables", "verdict", "wording", "comparison", "bounding",
    "study", "load", "search", "compare", "compare_tables", "capacity", "capacity_tables", "terminal", "options",
    "bounds_cli", "api", "studies", "trace_cli", "study_cli", "report.content", "report.material", "report.groups",
    "report.words", "report.latency", "report.sections", "report.rivalry", "report.break_even", "report.against",
    "report.over_time", "report.run_report", "report.store_report", "report.capacity_report", "report.page",
    "report.markdown", "report.document", "report.write", "report_cli", "sweep_cli", "policy_cli", "profile_cli",
    "hardware_cli", "cli", "__main__",
]
# fmt: on
# A package within sim that is one entry of ORDER: these are its ground floor, in order; its other modules stand beside
# each other on it, and only its __init__ sees them all. Modules of other packages have entries of their own.
GROUND = {"formats": ("base", "members", "json_items", "assembly", "tabular", "json_rows", "servegen_pool")}
# The only homes of these imports.
HOMES = {"simpy": ("clock",), "matplotlib": ("plots",), "seaborn": ("plots",)}
HOMES |= {"torch": ("hardware",), "safetensors": ("hardware",)}
# What a run took to compute is reported by these, and the package hardware measures time; nothing else knows it.
CLOCKS = ("engine", "cli", "runner", "tables", "terminal")
CLOCK_PACKAGE = ("sim", "hardware")
LONGEST_FUNCTION, LONGEST_FILE, LONGEST_POLICY, MOST_PARAMETERS, MOST_FILES = 70, 400, 250, 7, 30


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def packages(path: Path) -> tuple[str, ...]:
    """The folders that a file is in, from the top: ("sim", "formats")."""
    return path.relative_to(ROOT).parent.parts


def entry(path: Path) -> str:
    """What a file of sim is called in ORDER: its own name with its package's before it, or that of its package."""
    inside = packages(path)[1:]
    return inside[0] if inside and inside[0] in GROUND else ".".join((*inside, path.stem))


def reachable(path: Path) -> list[str]:
    """The modules of sim that a file of sim may import: what is below it, and in its package what GROUND allows."""
    below, inside = ORDER[: ORDER.index(entry(path))], packages(path)[1:]
    if not inside or inside[0] not in GROUND:
        return below
    ground, own = GROUND[entry(path)], entry(path)
    if path.stem == "__init__":
        return [*below, own, *(f"{own}.{other.stem}" for other in files("sim") if packages(other)[1:] == inside)]
    floor = ground[: ground.index(path.stem)] if path.stem in ground else ground
    return [*below, *(f"{own}.{name}" for name in floor)]


PLAIN = [f"sim.{name}" for name in dict.fromkeys(e.partition(".")[0] for e in ORDER if "." in e)]  # packages like that
OURS = files("sim", "policies", "scripts", "tests")
RUNNING = files("sim", "policies")  # what a simulation is made of


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}/{path.stem}")


def test_the_packages_are_looked_into() -> None:
    assert ROOT / "sim" / "formats" / "base.py" in RUNNING
    assert reachable(ROOT / "sim" / "formats" / "base.py") == ORDER[: ORDER.index("formats")]
    for package, ground in GROUND.items():
        modules = [path.stem for path in files(f"sim/{package}")]
        assert "__init__" in modules
        assert set(ground) < set(modules), package


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
            whole = module == "sim" or module in PLAIN
            yield from ((f"{module}.{alias.name}" if whole else module, node.lineno) for alias in node.names)
        elif not is_type_checking(node):
            yield from imports(node)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


# --- arrows


def test_the_order_lists_every_module() -> None:
    found = {entry(path) for path in files("sim") if entry(path).rpartition(".")[2] != "__init__"}
    assert found - set(ORDER) == set(), "put it where it belongs in ORDER"
    assert set(ORDER) - found == set()


@named(files("sim"))
def test_arrows_point_down(path: Path) -> None:
    if entry(path).rpartition(".")[2] == "__init__":
        return  # names the public names, and loads them when they are asked for; or names nothing
    allowed = reachable(path)
    for name, line in imports(tree_of(path)):
        package, _, module = name.partition(".")
        assert package != "policies", f"{path.name}:{line}: sim finds policies by name, it never imports them"
        if package == "sim" and module == "" and path.stem in ("cli", "results", "write"):
            continue  # for the version
        if package == "sim":
            # A module of a package below is below as well: the package's name stands for all of it.
            ours = module in allowed or (module.split(".")[0] in allowed and module.split(".")[0] != entry(path))
            assert ours, f"{path.name}:{line}: {path.stem} is below {module or 'the package itself'}"


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
    most = LONGEST_POLICY if packages(path)[0] == "policies" else LONGEST_FILE
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
    if (path.stem in CLOCKS and path.parent.name == "sim") or packages(path)[:2] == CLOCK_PACKAGE:
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
