"""`jclip inspect`: the page says what the run then does."""

import base64
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_cli import exit_status
from tiny import tiny_config

from jclip.config import (
    Augment,
    Config,
    Contrastive,
    Input,
    MeshConfig,
    Portion,
    Stage,
    TextTower,
    TokenizerConfig,
    View,
    make_plans,
    stage_configs,
)
from jclip.data import get_tokenizer, make_run_loader, open_source
from jclip.optim import make_schedule
from jclip.parts import prepare
from jclip.report import inspect
from jclip.tree import flatten

VOCABULARIES = Path(__file__).parent / "data" / "golden" / "tokenizers"


class Page(HTMLParser):
    """Pictures, and the cells of tables by row."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.images: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        if tag == "img":
            found = dict(attrs)
            self.images.append((str(found["alt"]), str(found["src"])))
        if tag == "tr":
            self.rows.append([])
        self.inside = tag == "td" or (self.inside and tag != "tr")
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data


def pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def staged() -> Config:
    config = tiny_config(
        views={"image@2": View("image", augment=Augment(scale=(0.3, 1.0)))},
        objectives={"image_text": Contrastive(), "views": Contrastive("image@2", "text")},
        mesh=MeshConfig(data=4, fsdp=2),
        evals={},
        **{"checkpoint.best": None, "optim.lr_rules": ((r"text/.*", 0.0), (r"image_projection/.*", 0.5), (r".*", 1.0))},
    )
    return dataclasses.replace(config, stages={"small": Stage("4", image_size=8, lr=5e-3, warmup="1")})


def test_the_page_shows_what_training_does(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    config = staged()
    page = Page(inspect.main(config, "a <recipe>", tmp_path / "i.html", seconds=0.1).read_text())
    plans = make_plans(config, 200)
    for part, plan, size in zip(stage_configs(config), plans, (8, 16), strict=True):
        with make_run_loader(part, skipped=plan.skipped) as loader:
            batch = next(loader)
        for view in ("image", "image@2"):
            found = [pixels(src) for alt, src in page.images if alt.startswith(f"{view} of ") and pixels(src).shape[0] == size]
            np.testing.assert_array_equal(np.stack(found), batch.arrays[view])
    program = inspect.make_program(config, inspect.make_mesh(config.mesh), warmup_steps=3, total_steps=12)
    shapes = flatten(program.state.params)
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows.keys() == shapes.keys()
    for path, (shape, numbers, sharded, decay, factor, trained) in rows.items():
        assert shape == (" x ".join(map(str, shapes[path].shape)) or "scalar")
        assert numbers.replace(",", "") == str(shapes[path].size)
        assert ("fsdp" in sharded) == ("fsdp" in str(shapes[path].sharding.spec)), path
        frozen = path.startswith("text/")
        assert trained == ("frozen" if frozen else "yes"), path
        assert factor == ("-" if frozen else "0.5" if path.startswith("image_projection/") else "1"), path
        decays = path.endswith("kernel") and not frozen
        assert (decay == f"{config.optim.weight_decay:g}") == decays or path.endswith("embed"), path


def test_the_page_of_a_mixture_says_its_order_and_what_its_sources_lack(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    for i in range(9):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("one\ntwo")
    sources = {"drawn": Portion("shapes:val?size=16&length=30", 0.25), "own": Portion(f"folder:{tmp_path}", 0.75)}
    config = tiny_config(evals={}, **{"checkpoint.best": None})
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, source="", sources=sources))
    config = dataclasses.replace(config, stages={"first": Stage("4", weights={"drawn": 1.0, "own": 0.0})})
    text = inspect.main(config, "mixed", tmp_path / "page.html", seconds=0.1).read_text()
    shares = [float(share) for share in re.findall(r"(\d+\.\d)% of what is seen", text)]  # of each stage
    assert shares[:2] == [100, 0]
    assert shares[2:] == pytest.approx([25, 75], abs=4 * 100 * (0.25 * 0.75 / (12 * 16)) ** 0.5)
    assert text.count("own: 9 of 9 texts that were looked at have several lines") == 2


def test_the_curve_is_the_schedule_of_each_stage() -> None:
    parts = prepare(staged())
    steps, rates = inspect.learning_rates(parts)
    expected = []
    for part in parts:
        schedule = make_schedule(part.config.optim, warmup_steps=part.plan.warmup, total_steps=part.plan.length)
        expected += [float(schedule(step)) for step in range(part.plan.length)]
    assert steps == list(map(float, range(parts[-1].plan.total)))
    np.testing.assert_array_equal(rates, expected)


def test_what_cannot_be_shown_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.py"
    recipe.write_text("from tiny import tiny_config\n\n\ndef get_config():\n    return tiny_config()\n")
    assert exit_status(["inspect", str(recipe), "--html", str(tmp_path / "p.html"), "--batch-size", "12"]) == 1
    assert re.search(r"batch_size 12 is not divisible by 8 devices", capsys.readouterr().err)
    assert not (tmp_path / "p.html").exists()
    (tmp_path / "folder").mkdir()
    assert exit_status(["inspect", str(recipe), "--html", str(tmp_path / "folder")]) == 1
    assert "is a folder; name a file" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("jclip.report.")]:
        monkeypatch.delitem(sys.modules, name)  # they may have been imported before
    for name in (module, "markupsafe"):
        monkeypatch.setitem(sys.modules, name, None)
    assert exit_status(["inspect", str(Path(__file__).parent / "recipe_tiny.py")]) == 1
    assert f'inspect: {module} is not installed; pip install "jclip[report]"' in capsys.readouterr().err


def test_texts_are_the_words_that_are_left() -> None:
    config = tiny_config()
    source = open_source(config.data.source)
    captions = {source[i]["key"]: source[i]["text"].lower().replace(" ", "") for i in range(200)}
    with make_run_loader(config, source) as loader:
        batch = next(loader)
    for key, picture in zip(batch.keys, inspect.pictures(config.inputs()["text"], batch.arrays["text"]), strict=True):
        words, count = re.fullmatch(r"(.+) \((\d) of 8 tokens\)", picture.text).groups()  # type: ignore[union-attr]
        whole, shown = captions[key], words.replace(" ", "")
        assert shown == whole if int(count) < 8 else whole.startswith(shown), picture


def text_view(**tokenizer: Any) -> tuple[Input, TextTower]:
    """The view of texts of a tower with a vocabulary of a file."""
    tower = TextTower(context_length=8, vocab_size=1000, tokenizer=TokenizerConfig(**tokenizer), eot_id=tokenizer.get("eos_id"))
    return tiny_config().inputs()["text"]._replace(seen_by=tower), tower


def test_tokens_are_counted_up_to_the_end_that_the_tower_finds() -> None:
    """Padding tells nothing: CLIP pads by an id that is a word, and T5 by the id that ends a text."""
    clip = tiny_config().inputs()["text"]
    (picture,) = inspect.pictures(clip, np.array([[49406, 0, 320, 0, 49407, 0, 0, 0]], np.int32))
    assert picture.text.endswith("(5 of 8 tokens)")
    view, tower = text_view(kind="sentencepiece", file=str(VOCABULARIES / "t5.model"), eos_id=1, pad_id=1)
    (picture,) = inspect.pictures(view, get_tokenizer(tower.tokenizer)(["a photo"], 8))
    assert picture.text == "a photo (3 of 8 tokens)"


def test_texts_of_a_tokenizer_that_names_no_ends_are_words_too() -> None:
    view, tower = text_view(kind="hugging_face", file=str(VOCABULARIES / "xlm.json"), pad_id=1)
    (picture,) = inspect.pictures(view, get_tokenizer(tower.tokenizer)(["a photo of a circle"], 8))
    assert picture.text.startswith("a photo of a ")
