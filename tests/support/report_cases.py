"""What the tests of reports share: small folders of every kind, made by the program itself, and a browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.runs.execute import play
from sim.runs.run_one import RunOptions, compose, run
from sim.runs.store import Keep, Store
from sim.runs.task import Machines, Task
from sim.studies.capacity import CapacityOptions, capacity
from sim.studies.compare import CompareOptions, compare
from sim.studies.study import StudyOptions
from tests.support.cli_cases import write_scenario

HERE = Machines(jobs=0)
POLICIES = "lru-swap,exclusive-swap,static-split"


def make_run(folder: Path, **changes: Any) -> Path:
    """A run folder."""
    run(RunOptions(write_scenario(folder, **changes), out=folder / "run"))
    return folder / "run"


def make_sweep(folder: Path, keep: Keep = "all") -> Path:
    """Two policies, two seeds, three loads; one run more than that fails."""
    path = write_scenario(folder)
    tasks = []
    for load in (0.5, 1.0, 2.0):
        for policy in ("lru-swap", "static-split"):
            for seed in (1, 2):
                settings = (
                    f"workload.traffic.0.rate_per_s={0.5 * load}",
                    f"workload.traffic.1.rate_per_s={0.2 * load}",
                )
                scenario = compose(RunOptions(path, policy, settings=settings, seed=seed))
                tasks.append(Task(scenario, {"policy": policy, "load": load, "seed": seed}))
    wrong = compose(RunOptions(path, "lru-swap", settings=("policy={name: no-such-policy}",)))
    tasks.append(Task(wrong, {"policy": "no-such-policy", "load": 1.0, "seed": 1}))
    store = Store(folder / "sweep", keep)
    with store.locked():
        play(tasks, store, HERE)
    return folder / "sweep"


def make_comparison(folder: Path, seeds: int = 3) -> Path:
    study = StudyOptions(RunOptions(write_scenario(folder)), POLICIES, seeds, machines=HERE)
    compare(CompareOptions(study, baseline="lru-swap", bounds=False, out=folder / "comparison"))
    return folder / "comparison"


def make_capacity(folder: Path) -> Path:
    study = StudyOptions(RunOptions(write_scenario(folder)), "lru-swap,static-split", 2, machines=HERE)
    capacity(CapacityOptions(study, tolerance=0.5, most=8.0, out=folder / "capacity"))
    return folder / "capacity"


def relabelled(store: Path, folder: Path, names: list[str], oracle: str | None = None) -> Path:
    """A store with these policies, made of the runs of another: as many as there are names, one seed each."""
    points = json.loads((store / "points.json").read_text())["now"]
    made = []
    for number, name in enumerate(names):
        for seed in range(2):
            run_id = f"{number:08x}{seed:08x}"
            source = store / "runs" / points[(number * 2 + seed) % 4]["run_id"]
            shutil.copytree(source, folder / "runs" / run_id)
            path = folder / "runs" / run_id / "summary.json"
            summary = json.loads(path.read_text())
            summary.update(run_id=run_id, policy=name, seed=seed, oracle=oracle if name == names[-1] else None)
            path.write_text(json.dumps(summary))
            made.append({"run_id": run_id, "labels": {"policy": name, "seed": seed}})
    (folder / "points.json").write_text(json.dumps({"now": made, "earlier": []}))
    return folder


# --- the browser


def browser_paths() -> tuple[str, str] | None:
    """Debian's chromium and its driver; None where they are not installed."""
    found = [shutil.which(name) for name in ("chromium", "chromedriver")]
    return (found[0], found[1]) if found[0] is not None and found[1] is not None else None


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium without a network; its console can be read."""
    from selenium import webdriver  # noqa: PLC0415
    from selenium.webdriver.chrome.service import Service  # noqa: PLC0415

    paths = browser_paths()
    assert paths is not None
    options = webdriver.ChromeOptions()
    options.binary_location = paths[0]
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(paths[1]))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, width: int = 1280, dark: bool = False) -> None:
    """Open a page at a width, with what the system prefers."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    driver.get(page.as_uri())


def pixels(driver: Any, selector: str) -> NDArray[np.float64]:
    """What is seen of the first element that a selector finds: [height, width, RGB] from 0 to 255."""
    from PIL import Image  # noqa: PLC0415

    box = driver.execute_script(
        "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center', behavior: 'instant'});"
        "const r = e.getBoundingClientRect();"
        "return {x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}",
        selector,
    )
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": box}
    )
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB"), dtype=np.float64)


def luminance(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Relative luminance by WCAG 2.1."""
    share = rgb / 255
    linear = np.where(share <= 0.03928, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    found: NDArray[np.float64] = linear @ np.array([0.2126, 0.7152, 0.0722])
    return found


def contrast(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Of two colours, by WCAG 2.1: 1 is none, 21 black on white."""
    one, other = sorted((float(luminance(first)), float(luminance(second))))
    return (other + 0.05) / (one + 0.05)
