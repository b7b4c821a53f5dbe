"""`jclip report`: one HTML page of one or several results files, which needs no network and runs no script."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from jclip.config import ConfigError
from jclip.data.caches import write_atomically
from jclip.report.adapt import PAGE, is_adaptation, page_of
from jclip.report.read import checked_results

__all__ = ["main", "require_extra"]


def main(paths: Sequence[str | Path], html: str | Path | None = None) -> Path:
    """Writes the page and says where.

    The same files give the same bytes. A page that is there is replaced at once: who reads it sees the old one or the new one.

    Args:
        paths: results files, as `jclip eval --json` writes them. Each is a model, in this order. Or one adaptation: the folder
            that `jclip adapt` has written, or its results.json, also while it is running.
        html: the page to write; None: report.html beside the first file; page.html in the folder of an adaptation.

    Returns:
        The page's path.

    Raises:
        ConfigError: a file is not one of results, the page would replace one of them or a folder, or the extra is missing.
    """
    if not paths:
        raise ConfigError("report: no results file is given; write one with: jclip eval MODEL --suite FILE.py --json OUT.json")
    inputs = [_file(Path(path)) for path in paths]
    adapted = [path for path in inputs if is_adaptation(path)]
    if adapted and len(inputs) > 1:
        raise ConfigError(f"report: {adapted[0]} is an adaptation, which has a page of its own; give it alone")
    out = inputs[0].parent / (PAGE if adapted else "report.html") if html is None else Path(html)
    if out.is_dir():
        raise ConfigError(f"report: {out} is a folder; name a file, such as {out / 'report.html'}")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise ConfigError(f"report: {out} is a results file and the page would replace it; name another with --html")
    require_extra("report")
    if adapted:
        page = page_of(adapted[0])
        write_atomically(out, lambda path: path.write_text(page, encoding="utf-8", newline="\n"))
        print(f"wrote {out}: one adaptation, {out.stat().st_size / 1e6:.1f} MB")
        return out
    runs = [checked_results(path) for path in inputs]
    from jclip.report.page import render

    page = render(runs)
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8", newline="\n"))
    evaluations = len({name for run in runs for name in run.results})
    print(f"wrote {out}: models {len(runs)}, evaluations {evaluations}, {out.stat().st_size / 1e6:.1f} MB")
    return out


def _file(path: Path) -> Path:
    """The file of results; of a folder of `jclip adapt` that which is in it."""
    return path / "results.json" if (path / "results.json").is_file() else path


def require_extra(command: str) -> None:
    """Raises ConfigError where what makes pages is not installed."""
    for module in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f'{command}: {module} is not installed; pip install "jclip[report]"') from error
