"""The source tfds, on a data set that this test defines and writes."""

import io
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jclip.config import VisionTower
from jclip.data import SourceError, eval_transform, lookup, open_source

tfds = pytest.importorskip("tensorflow_datasets", reason="the extra tfds is not installed")

pytestmark = pytest.mark.filterwarnings("ignore")  # etils and array_record warn at import


def png(value: int) -> io.BytesIO:
    file = io.BytesIO()
    Image.new("RGB", (5, 4), (value, value, value)).save(file, "PNG")
    return io.BytesIO(file.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tfds")

    class Greys(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "text": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["dark", "light"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples(7), "test": self._generate_examples(3)}

        def _generate_examples(self, count: int) -> Any:
            for i in range(count):
                yield i, {"image": png(30 * i), "text": f"grey café {i}", "label": int(i > 3)}

    Greys(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_examples_have_encoded_images_texts_and_int_labels(folder: Path) -> None:
    source = open_source(f"tfds:greys:train?data_dir={folder}")
    assert len(source) == 7
    assert source.classes == ("dark", "light")
    seen = set()
    for i in range(7):
        example = source[i]
        assert example["key"] == f"greys:train:{i}"
        number = int(example["text"].removeprefix("grey café "))
        assert lookup(example, "label") == int(number > 3)
        assert type(example["label"]) is int
        pixels = eval_transform(VisionTower(image_size=4, patch_size=2))(example["image"])
        np.testing.assert_array_equal(pixels, np.full((4, 4, 3), 30 * number, np.uint8))
        seen.add(number)
    assert seen == set(range(7))


def test_a_part_of_a_split_can_be_opened(folder: Path) -> None:
    assert len(open_source(f"tfds:greys:train[:3]?data_dir={folder}")) == 3


def test_the_source_survives_pickling(folder: Path) -> None:
    source = open_source(f"tfds:greys:test?data_dir={folder}")
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i]["text"] for i in range(3)] == [source[i]["text"] for i in range(3)]


def test_the_fingerprint_is_that_of_the_files_and_the_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    value = open_source(f"tfds:greys:train?data_dir={folder}").fingerprint()
    assert pickle.loads(pickle.dumps(open_source(f"tfds:greys:train?data_dir={folder}"))).fingerprint() == value
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert open_source(f"tfds:greys:train?data_dir={copy}").fingerprint() == value
    others = [open_source(f"tfds:greys:{split}?data_dir={copy}").fingerprint() for split in ("test", "train[:3]", "train[1:3]")]
    assert len({value, *others}) == 4

    files = [path for path in copy.rglob("*array_record*") if "train" in path.name]
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert open_source(f"tfds:greys:train?data_dir={copy}").fingerprint() != value
    assert open_source(f"tfds:greys:test?data_dir={copy}").fingerprint() == others[0]


def test_the_names_of_the_labels_are_in_the_fingerprint(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JCLIP_CACHE", str(tmp_path / "cache"))
    source: Any = open_source(f"tfds:greys:train?data_dir={folder}")
    value = source.fingerprint()
    source.classes = ("light", "dark")
    assert source.fingerprint() != value


def test_tensorflow_is_not_imported(folder: Path) -> None:
    open_source(f"tfds:greys:test?data_dir={folder}")[0]
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:greys", "name the data set and the split"),
        ("tfds:greys:dev?data_dir={folder}", "splits: .*test"),
        ("tfds:no_such_set:train?data_dir={folder}", "no data set 'no_such_set'"),
        ("tfds:cifar10:train?data_dir={folder}", "not prepared"),
        ("tfds:greys:train?data={folder}", "option 'data' is unknown; use data_dir"),
    ],
)
def test_errors_say_what_is_wrong(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(spec.format(folder=folder))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(SourceError, match=r'pip install "jclip\[tfds\]"'):
        open_source("tfds:cifar10:test")
