"""The site of docs/: it is built without a warning, and everything that its pages link to is there."""

import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from pages import PAGES, ROOT

import jclip

TEXTS = PAGES | {name: (ROOT / name).read_text(encoding="utf-8") for name in ("CONTRIBUTING.md", "CHANGELOG.md")}


def places(text: str) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS)
def test_what_a_page_links_to_exists(page: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", TEXTS[page]):
        if "://" in link:
            continue
        path, _, place = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if place:
            assert place in places(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", TEXTS)
def test_files_that_a_page_names_exist(page: str) -> None:
    for name in re.findall(r"`((?:jclip|configs|examples|tools|tests|docs)/[\w/.]*)[` ]", TEXTS[page]):
        assert (ROOT / name).exists(), name


def test_no_number_is_left_to_fill_in() -> None:
    assert not re.search(r"@[A-Z]+@|\bTODO\b|\bTBD\b", "\n".join(TEXTS.values()))


def test_the_citation_is_of_this_version() -> None:
    assert f"version: {jclip.__version__}\n" in (ROOT / "CITATION.cff").read_text()


class Links(HTMLParser):
    """The links and the places of a page of the site."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.places = set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.places.add(value)
            if name in ("href", "src") and value and not re.match(r"\w+:|//", value):
                self.links.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(name, reason=f"{name} is missing: pip install 'jclip[docs]'")
    made = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "-n", "-q", "docs", str(made)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.slow
def test_the_site_is_built_and_its_links_lead_somewhere(site: Path) -> None:
    pages = {path: Links(path) for path in site.rglob("*.html")}
    for page in PAGES:
        if page.startswith("docs/"):
            assert (site / Path(page).relative_to("docs")).with_suffix(".html") in pages, page
    for path, page in pages.items():
        for link in page.links:
            file, _, place = unquote(link).partition("#")
            target = (path.parent / file.split("?")[0]).resolve() if file else path
            assert target.exists(), (path, link)
            if place and target in pages:
                assert place in pages[target].places, (path, link)


@pytest.mark.slow
def test_the_reference_has_all_that_jclip_exports(site: Path) -> None:
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    described = {line.split()[0] for line in lines}
    exported = {name: getattr(jclip, name) for name in dir(jclip) if name in jclip._LAZY}
    ours = {name: value for name, value in exported.items() if getattr(value, "__module__", "").startswith("jclip")}
    assert {"load", "ConfigError"} <= ours.keys()
    for name, value in ours.items():
        assert {f"jclip.{name}", f"{value.__module__}.{name}"} & described, name
