"""The way into reports: opens a folder, has its report made, and writes it as a page, a text, a document or a picture.

Files appear whole or not at all. Called by the command line and by whoever reports from Python.
"""

from __future__ import annotations

from pathlib import Path

from sim.common.atomic_files import whole_file, why
from sim.common.errors import ConfigError, did_you_mean
from sim.common.version import VERSION
from sim.report.content import Report
from sim.report.result_folder import Material, open_folder

FORMATS = {"html": ".html", "md": ".md", "pdf": ".pdf", "png": ".png"}


def report(folder: Path, out: Path | None = None, form: str | None = None) -> Path:
    """Write the report of `folder` and return where it lies.

    form: html, md, pdf or png; None: what the name of `out` ends in, else html. out: None for `report.<form>` within
    the folder; a report that is there already is replaced, any other file is not. Beside a `.md` its figures are in
    the folder `<name>-figures`. Raises ConfigError; nothing is written then.
    """
    form = _form(out, form)
    target = folder / f"report{FORMATS[form]}" if out is None else out
    found = made(open_folder(folder))
    _check(target, replaceable=out is None)
    for path, data in _files(found, form, target).items():
        _put(path, data)
    return target


def made(material: Material) -> Report:
    """The report of what a folder holds."""
    from sim.report.run_report import run_report  # noqa: PLC0415  heavy
    from sim.report.store_report import store_report  # noqa: PLC0415

    if material.kind == "run":
        return run_report(material)
    if material.kind == "capacity":
        from sim.report.capacity_report import capacity_report  # noqa: PLC0415

        return capacity_report(material)
    return store_report(material)


def _files(found: Report, form: str, target: Path) -> dict[Path, bytes]:
    """All bytes of a report, its own file last, so that whoever sees it sees all of it."""
    if form == "html":
        from sim.report.page import html  # noqa: PLC0415  heavy

        return {target: html(found, VERSION).encode()}
    if form == "md":
        from sim.report.markdown import markdown  # noqa: PLC0415

        figures = target.with_name(f"{target.stem}-figures")
        text, pictures = markdown(found, figures.name)
        return {**{figures / name: data for name, data in pictures.items()}, target: text.encode()}
    if form == "pdf":
        from sim.report.document import pdf  # noqa: PLC0415

        return {target: pdf(found)}
    from sim.plots.style import overview_png  # noqa: PLC0415

    return {target: overview_png(found.title, f"{found.headline} {' '.join(found.words[:2])}", found.overview)}


def _form(out: Path | None, form: str | None) -> str:
    endings = {ending: name for name, ending in FORMATS.items()}
    if form is None:
        if out is None:
            return "html"
        told = endings.get(out.suffix.lower())
        if told is None:
            raise ConfigError(f"--out {out}: its name ends in none of {', '.join(endings)}; add --format")
        return told
    if form not in FORMATS:
        raise ConfigError(f"--format {form}: unknown; {did_you_mean(form, FORMATS)}")
    return form


def _check(target: Path, replaceable: bool) -> None:
    """Refuse, before the work, a place where nothing can be written or where something else lies."""
    if target.is_dir():
        raise ConfigError(f"--out {target}: is a folder; give the name of a file in it")
    if not target.parent.is_dir():
        raise ConfigError(f"--out {target}: there is no folder {target.parent}; make it first")
    if target.exists() and not replaceable:
        raise ConfigError(f"--out {target}: exists already; choose another name or remove it")


def _put(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(exist_ok=True)
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot write it ({why(error)}); nothing of it was kept") from None
