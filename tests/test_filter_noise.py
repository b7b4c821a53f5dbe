"""The program filter_noise: what it shuffles, and how it counts what is found."""

from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from programs import load_program

from jclip.data import open_source


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_program("filter_noise")


def test_a_share_of_the_captions_is_passed_around_and_marked(tool: ModuleType, tmp_path: Path) -> None:
    tool.write_noisy(tmp_path / "noisy.tar", 200, 0.3)
    drawn, noisy = (
        open_source("shapes:train?size=32&length=200&captions=complete"),
        open_source(f"webdataset:{tmp_path}/noisy.tar"),
    )
    own, other = [drawn[i]["text"] for i in range(200)], [noisy[i]["text"] for i in range(200)]
    assert sorted(own) == sorted(other)
    false = [a != b for a, b in zip(own, other, strict=True)]
    assert [noisy[i]["key"].endswith("-shuffled") for i in range(200)] == false
    assert 50 <= sum(false) <= 60  # some meet a caption that equals theirs


def test_what_is_found_is_counted_where_a_tenth_of_the_others_is_dropped(tool: ModuleType, tmp_path: Path) -> None:
    keys = [f"{i}" for i in range(100)] + [f"{i}-shuffled" for i in range(4)]
    scores = [i / 100 for i in range(100)] + [0.05, 0.09, 0.11, 0.5]
    pq.write_table(pa.table({"key": keys, "score": scores}), tmp_path / "table.parquet")
    assert tool.found_at(tmp_path / "table.parquet", 0.1) == 0.5
