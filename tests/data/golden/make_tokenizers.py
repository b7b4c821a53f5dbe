"""Writes tokenizers/ with open_clip and transformers: `PYTHONPATH=tests python tests/data/golden/make_tokenizers.py`.

*.model, *.json   small vocabularies of sentencepiece and Hugging Face
ids.json          texts; for every tokenizer its fields, and the ids that the library it comes from gives to each text
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import vocabularies
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from transformers import AutoTokenizer

HERE = Path(__file__).parent / "tokenizers"
LENGTH = 16


def saved(folder: Path, name: str, vocabulary: Path) -> Path:
    """The folder that transformers saves of a published one."""
    source = vocabularies.write_folder(folder / f"{name}-source", name, vocabulary)
    AutoTokenizer.from_pretrained(str(source)).save_pretrained(str(folder / name))
    return folder / name


def keep(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def transformers_ids(folder: Path, model_type: str, texts: list[str]) -> list[list[int]]:
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows = tokenizer(texts, max_length=LENGTH, padding="max_length", truncation=True).input_ids
    (folder / "config.json").unlink()
    return rows  # type: ignore[no-any-return]


def open_clip_ids(folder: Path, texts: list[str], **options: Any) -> list[list[int]]:
    return HFTokenizer(str(folder), context_length=LENGTH, **options)(texts).tolist()  # type: ignore[no-any-return]


def main() -> None:
    """All files."""
    HERE.mkdir(exist_ok=True)
    texts = [row["text"] for row in json.loads((HERE.parent / "tokens.json").read_text())] + vocabularies.strings(80)
    texts = [vocabularies.without_exceptions(text) for text in texts]
    work = Path(tempfile.mkdtemp())
    vocabularies.train_unigram(HERE / "t5.model")
    vocabularies.train_gemma(HERE / "gemma.model")
    vocabularies.train_bert(work / "bert.json")
    vocabularies.train_clip(work / "clip.json")
    vocabularies.train_xlm(work / "xlm.json")
    folders = {name: saved(work, name, HERE / f"{name}.model") for name in ("t5", "gemma")}
    folders |= {name: saved(work, name, work / f"{name}.json") for name in ("bert", "clip", "xlm")}
    for name, folder in folders.items():
        keep(HERE / f"{name}.json", json.loads((folder / "tokenizer.json").read_text()))
    siglip = vocabularies.write_folder(work / "siglip", "siglip", HERE / "t5.model")

    rows: list[dict[str, Any]] = []

    def add(fields: dict[str, Any], ids: list[list[int]]) -> None:
        rows.append({"tokenizer": fields, "ids": ids})

    t5, gemma = (
        open_clip_ids(folders["t5"], texts, clean="canonicalize"),
        open_clip_ids(folders["gemma"], texts, clean="canonicalize"),
    )
    sp, hf = {"kind": "sentencepiece"}, {"kind": "hugging_face"}
    add({**hf, "file": "t5.json", "clean": "canonicalize", "pad_id": 1}, t5)
    # Where a text spells sentencepiece's sign for a space, T5Tokenizer's ids are not sentencepiece's: left out.
    plain = [[] if "\u2581" in text else row for text, row in zip(texts, t5, strict=True)]
    add({**sp, "file": "t5.model", "clean": "canonicalize", "pad_id": 1, "eos_id": 1}, plain)
    add({**sp, "file": "t5.model", "clean": "siglip", "pad_id": 1, "eos_id": 1}, transformers_ids(siglip, "siglip", texts))
    add({**hf, "file": "gemma.json", "clean": "canonicalize"}, gemma)
    add({**sp, "file": "gemma.model", "clean": "canonicalize", "eos_id": 1}, gemma)
    add({**hf, "file": "gemma.json", "clean": "siglip2"}, transformers_ids(folders["gemma"], "siglip2", texts))
    add({**hf, "file": "gemma.json", "clean": "none"}, transformers_ids(folders["gemma"], "siglip", texts))
    bert = {**hf, "file": "bert.json", "clean": "whitespace"}
    add({**bert, "strip_id": 3}, open_clip_ids(folders["bert"], texts, strip_sep_token=True))
    config = folders["bert"] / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"bos_token": "[CLS]", "eos_token": "[SEP]"}))
    add({**bert, "bos_id": 2, "eos_id": 3, "last_id": 2}, open_clip_ids(folders["bert"], texts, tokenizer_mode="clips"))
    for clean in ("whitespace", "lower", "canonicalize"):
        add({**hf, "file": "xlm.json", "clean": clean, "pad_id": 1}, open_clip_ids(folders["xlm"], texts, clean=clean))
    add({**hf, "file": "clip.json", "clean": "none", "pad_id": 1}, transformers_ids(folders["clip"], "clip", texts))
    add({"clean": "canonicalize"}, SimpleTokenizer(context_length=LENGTH, clean="canonicalize")(texts).tolist())
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / "ids.json").write_text(f'{{"texts":{json.dumps(texts)},\n"rows":[\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
