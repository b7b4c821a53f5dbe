"""`jclip report`: one HTML page of one or several results files, which needs no network and runs no script."""

import importlib
from collections.abc import Sequence
from pathlib import Path

from jclip.config import ConfigError
from jclip.data.caches import write_atomically
from jclip.report.read import read_results

__all__ = ["main"]


def main(paths: Sequence[str | Path], html: str | Path | None = None) -> Path:
    """Writes the page and says where.

    The same files give the same bytes. A page that is there is replaced at once: who reads it sees the old one or the new one.

    Args:
        paths: results files, as `jclip eval --json` writes them. Each is a model, in this order.
        html: the page to write; None: report.html beside the first file.

    Returns:
        The page's path.

    Raises:
        ConfigError: a file is not one of results, the page would replace one of them or a folder, or the extra is missing.
    """
    if not paths:
        raise ConfigError("report: no results file is given; write one with: jclip eval MODEL --suite FILE.py --json OUT.json")
    inputs = [Path(path) for path in paths]
    out = inputs[0].parent / "report.html" if html is None else Path(html)
    if out.is_dir():
        raise ConfigError(f"report: {out} is a folder; name a file, such as {out / 'report.html'}")
    if out.resolve() in {path.resolve() for path in inputs}:
        raise ConfigError(f"report: {out} is a results file and the page would replace it; name another with --html")
    _require_extra()
    runs = [read_results(path) for path in inputs]
    from jclip.report.page import render

    page = render(runs)
    write_atomically(out, lambda path: path.write_text(page, encoding="utf-8", newline="\n"))
    evaluations = len({name for run in runs for name in run.results})
    print(f"wrote {out}: models {len(runs)}, evaluations {evaluations}, {out.stat().st_size / 1e6:.1f} MB")
    return out


def _require_extra() -> None:
    for module in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f'report: {module} is not installed; pip install "jclip[report]"') from error
