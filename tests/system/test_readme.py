"""README and docs/ keep their word: their commands are played, or their options looked up; examples run, links lead
somewhere, and the README stays short.

Commands stand in `sh` blocks and are played as they are, page by page, in a folder that looks like the project's. What
cannot be played here is listed with its reason. Blocks of `text` show usage: their options are looked up, as are those
of commands within sentences.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from sim.policy.loader import policy_class
from sim.scenario.scenario import load_scenario, parse_scenario
from tests.support.places import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = [
    ROOT / folder / "README.md" for folder in ("policies", "profiles", "traces", "traces/scenarios", "notebooks")
]
TEXTS = [*PAGES, *FOLDERS, ROOT / "SECURITY.md"]
README = PAGES[0].read_text(encoding="utf-8")

# Commands of sh blocks that are not played here, by how they begin, and why.
NOT_PLAYED = {
    "python3 -m venv .venv && .venv/bin/pip": ".ci/run plays the README's two commands in an empty environment",
    ".venv/bin/pip install": "it changes the environment; .ci/run compiles the engine",
}
# Commands that take minutes are played with less work: what is put behind them, by how they begin.
LESS = {
    "python -m sim capacity": "--seeds 1 --tolerance 0.5 --most 2 --set workload.duration_s=300",
    "python -m sim compare --policies": "--seeds 2 --set workload.duration_s=300",
    "python -m sim compare": "--seeds 2",
}
TOOLS = r"(?:python|\.venv/bin/python) (?:scripts/\w+\.py|-m (?:sim(?:\.[\w.]+)?|tests\.tools\.\w+)\b)[^`\n]*"


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of its sh blocks, without what they say of themselves."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.partition("  #")[0].strip() for line in lines if line.strip()]


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


# --- the README's shape


def test_the_first_two_commands_are_one_line_each_and_complete() -> None:
    main_job, tests = (block.strip() for block in blocks(PAGES[0], "sh")[:2])
    for command in (main_job, tests):
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")
    assert main_job.endswith("-m sim run --policy residency-aware")
    assert tests.endswith("-m pytest -n auto")


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_main_job_prints_what_the_readme_shows() -> None:
    result = run_python(*blocks(PAGES[0], "sh")[0].strip().split(".venv/bin/python ")[1].split())
    assert result.returncode == 0, result.stderr
    printed = [re.sub(r"\s+", " ", line).strip() for line in result.stdout.splitlines()]
    shown = [re.sub(r"\s+", " ", line).strip() for line in blocks(PAGES[0], "text")[0].splitlines()]
    for line in filter(None, shown):
        assert any(line in " ".join(printed[at : at + 2]) for at in range(len(printed))), line


# --- commands


def desk(folder: Path) -> Path:
    """The folder, made to look like the project's, with the files that commands of the pages are given."""
    for name in ("traces", "profiles", "policies", "scripts", "sim"):
        (folder / name).symlink_to(ROOT / name)
    rows = [f"2023-11-16 18:17:{s:02d}.{s:02d}00000,{100 + s},{20 + s}" for s in range(60)]
    with gzip.open(folder / "AzureLLMInferenceTrace_conv.csv.gz", "wt") as file:
        file.write("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    (folder / "bench").mkdir()
    (folder / "bench" / "first.json").write_text(json.dumps(_records()), encoding="utf-8")
    for page in PAGES:
        for block in blocks(page, "yaml"):
            if "\nvary:" in block:
                (folder / "grid.yaml").write_text(block, encoding="utf-8")
        for block in blocks(page, "python"):
            if "(Policy)" in block:
                (folder / "round_robin.py").write_text(block, encoding="utf-8")
    return folder


def _records() -> list[dict[str, object]]:
    """What llama-bench writes of an 8B model: tokens a second against layers on the GPU."""
    about = {
        "build_commit": "0", "build_number": 4000, "model_filename": "llama-3-8b-q4_k_m.gguf",
        "model_type": "llama 8B Q4_K - Medium", "model_size": 4912898304, "model_n_params": 8030261312,
        "n_batch": 2048, "n_ubatch": 512, "n_threads": 8, "type_k": "f16", "type_v": "f16", "n_depth": 0,
        "cpu_info": "cpu", "gpu_info": "gpu", "backends": "CUDA", "test_time": "2025-01-01T00:00:00Z",
    }  # fmt: skip
    step_s = {0: 0.1, 16: 0.054, 33: 0.0075}
    decode = [
        {**about, "n_gpu_layers": layers, "n_prompt": 0, "n_gen": 128, "avg_ts": 1 / s, "stddev_ts": 0.1}
        for layers, s in step_s.items()
    ]
    prompts = [
        {**about, "n_gpu_layers": layers, "n_prompt": 512, "n_gen": 0, "avg_ts": 512 / s, "stddev_ts": 1.0}
        for layers, s in {0: 5.0, 33: 0.1}.items()
    ]
    return [*decode, *prompts]


@named([page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    folder = desk(tmp_path)
    for command in commands(page):
        if any(command.startswith(beginning) for beginning in NOT_PLAYED):
            continue
        assert command.startswith("python "), f"{command}: play it, or say in NOT_PLAYED why not"
        less = next((more for beginning, more in LESS.items() if command.startswith(beginning)), "")
        arguments = shlex.split(f"{command} {less}")[1:]
        given = [path for word in arguments for path in (sorted(folder.glob(word)) if "*" in word else [word])]
        result = run_python(*(str(word) for word in given), cwd=folder)
        assert result.returncode == 0, f"{command}\n{result.stderr}{result.stdout[-2000:]}"


@cache
def help_of(*words: str) -> str:
    result = run_python(*words, "--help")
    assert result.returncode == 0, f"{' '.join(words)} --help\n{result.stderr}"
    return result.stdout


def looked_up(command: str) -> list[tuple[str, ...]]:
    """The words of a command whose --help has its options: a script, a module, or a verb with its verbs."""
    words = command.split()[1:]
    if words[0] != "-m":
        return [(words[0],)]
    if words[1] != "sim":
        return [("-m", words[1])]
    if len(words) == 2 or words[2].startswith("-"):
        return [("-m", "sim")]
    verb = ("-m", "sim", words[2])
    inner = re.findall(r"^  ([a-z-]+)  ", help_of(*verb).partition("Commands:")[2], flags=re.MULTILINE)
    further = words[3].split("|") if inner and len(words) > 3 else []
    if further and (words[2] != "policies" or further[0] in inner):  # `policies NAME` shows one
        return [(*verb, word) for word in further if word.islower()]
    return [verb]


@named(TEXTS)
def test_the_options_of_commands_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for command in re.findall(TOOLS, re.sub(r"\n {10,}", " ", text)):
        known = "".join(help_of(*words) for words in looked_up(command))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", command):
            assert option in known or option in ("--help", "--version"), f"{page.name}: {command}: {option}"


@pytest.mark.parametrize(
    "verb",
    ["run", "compare", "sweep", "capacity", "bounds", "report", "policies", "trace", "profile", "validate"],
)
def test_the_verbs_of_the_readme_exist(verb: str) -> None:
    assert re.search(rf"^python -m sim {verb} ", "\n".join(blocks(PAGES[0], "text")), flags=re.MULTILINE)
    help_of("-m", "sim", verb)


def test_the_readme_has_every_verb() -> None:
    for verb in re.findall(r"^  ([a-z]+)  ", help_of("-m", "sim").partition("Commands:")[2], flags=re.MULTILINE):
        assert f"python -m sim {verb} " in README, verb


# --- examples


@named([page for page in PAGES if blocks(page, "python")])
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    folder = desk(tmp_path)
    (folder / "docs" / "images").mkdir(parents=True)
    for block in blocks(page, "python"):
        if "(Policy)" in block:
            arguments = ["-m", "sim", "run", "traces/scenarios/desktop.yaml", "--policy", "round_robin.py", "--check"]
        else:
            arguments = ["-c", block]
        result = run_python(*arguments, cwd=folder)
        assert result.returncode == 0, result.stderr
    for picture in (folder / "docs" / "images").iterdir():
        kept = ROOT / "docs" / "images" / picture.name
        assert size_of(picture) == size_of(kept), f"{picture.name} is not what the page's command draws"
        assert kept.stat().st_size < 150_000


def size_of(png: Path) -> tuple[int, int]:
    """Width and height of a PNG, which stand behind its signature."""
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    return width, height


@named([page for page in PAGES if blocks(page, "yaml")])
def test_the_yaml_of_a_page_is_taken(page: Path) -> None:
    whole = yaml.safe_load((ROOT / "traces" / "scenarios" / "default.yaml").read_text(encoding="utf-8"))
    for block in blocks(page, "yaml"):
        found = yaml.safe_load(block)
        if "vary" in found:
            continue  # a grid, which a command of its page plays
        data = {**whole, **found}
        if "workload" in found:
            data["models"] = [{**whole["models"][at], "name": name} for at, name in enumerate(("big", "small"))]
            data["service_classes"] = [{"name": name} for name in ("default", "interactive", "batch")]
        parse_scenario(data, page.name)


def test_scenarios_of_the_pages_exist() -> None:
    for page in TEXTS:
        for name in re.findall(r"traces/scenarios/[a-z-]+\.yaml", page.read_text(encoding="utf-8")):
            load_scenario(ROOT / name)


# --- links


def anchors(page: Path) -> list[str]:
    """What a heading is called in a link, as GitHub makes it."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@named(TEXTS)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        path = page.parent / target if target else page
        assert path.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page.name}: {target}#{anchor}"


@named(TEXTS)
def test_files_that_are_named_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:sim|scripts|policies|tests|profiles|traces|docs)/[\w./-]*)`", page.read_text(encoding="utf-8")
    ):
        made = name.startswith(("sim/_compiled", "profiles/measured")) or "NAME" in name  # by commands, by you
        assert made or (ROOT / name).exists(), f"{page.name}: {name}"


def test_every_page_is_linked_from_the_readme() -> None:
    for page in PAGES[1:]:
        assert f"](docs/{page.name}" in README, page.name


# --- tables


def test_the_policies_of_the_tables_are_those_there_are() -> None:
    tiers: dict[str, list[str]] = {}
    for path in sorted((ROOT / "policies").glob("[a-z]*.py")):
        name = path.stem.replace("_", "-")
        tiers.setdefault(policy_class(name)[0].tier, []).append(name)
    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    for tier, names in tiers.items():
        (row,) = re.findall(rf"^\| (?:{tier}|{tier}s) \| (.+) \|$", page, flags=re.MULTILINE)
        assert sorted(re.findall(r"`([a-z-]+)`", row)) == names
    number = sum(len(names) for names in tiers.values())
    assert f"{number} policies" in README
    told = (ROOT / "policies" / "README.md").read_text(encoding="utf-8").partition("## The ladder")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", told, flags=re.MULTILINE)
    assert sorted(listed) == sorted(name for names in tiers.values() for name in names)
