"""Weight files of CLAP as their authors publish them: LAION-CLAP's .pt and MS-CLAP's .pth, whose names and shapes say all."""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jclip.config import (
    LAION_FUSED_MEL,
    LAION_MEL,
    LAION_WAVEFORM,
    MSCLAP_2022_MEL,
    MSCLAP_2022_WAVEFORM,
    MSCLAP_2023_MEL,
    MSCLAP_2023_WAVEFORM,
    Cnn14Tower,
    HtsatTower,
    Mel,
    Model,
    TokenTower,
    Waveform,
)
from jclip.models import mel_bank
from jclip.weights.clap_texts import text_of
from jclip.weights.errors import WeightsError
from jclip.weights.hugging_face.clap import FUSED_SECONDS
from jclip.weights.io.files import Lazy
from jclip.weights.layout import SCALAR, Rule, dense_rules
from jclip.weights.prefixes import without_prefix
from jclip.weights.sound_names import BUFFERS, CLASSIFIERS, FRONT_END, SCALE, cnn14_rules, htsat_rules, residual_rules

log = logging.getLogger(__name__)

SOUND_SCALE = SCALE
"""Path of the scale of its one objective."""

UNUSED = r"(audio|text)_transform\..*|logit_scale_t"
"""Names of LAION's parameters on which no embedding depends: a second pair of embeddings in training, and a scale."""

Shapes = Mapping[str, tuple[int, ...]]


class ClapLayout(NamedTuple):
    """Places of the parts of a model in a file."""

    format: str
    sound: str
    """Beginning of the names of the network of sounds."""
    text: str
    """Beginning of the names of that of texts."""
    scale: str


LAION = ClapLayout("laion_clap", "audio_branch.", "text_branch.", "logit_scale_a")
MICROSOFT = ClapLayout("msclap", "audio_encoder.base.", "caption_encoder.base.", "logit_scale")
MSCLAP_2023_SAID = Mel(hop=320, fmax=8000.0)
"""The spectrogram that MS-CLAP 2023's configuration says and its code does not make: of files that bring its filters."""

MARKS = {"audio_branch.bn0.weight": LAION, "audio_encoder.base.bn0.weight": MICROSOFT}
MARKS |= {"audio_encoder.base.htsat.bn0.weight": MICROSOFT._replace(sound="audio_encoder.base.htsat.")}
"""Layouts by the name of an array that no other file has."""


def is_clap(tensors: Mapping[str, Any]) -> bool:
    """True for the arrays of such a file, also with a prefix of training programs before all names."""
    return any(name.endswith(tuple(MARKS)) for name in tensors)


def open_clap(
    path: Path, tensors: Mapping[str, Lazy], vocabulary: str | Path | None
) -> tuple[str, Model, list[Rule], dict[str, Lazy]]:
    """The format, the model, a rule for every parameter, and the arrays that are parameters.

    Args:
        path: of the file, for messages.
        tensors: by name.
        vocabulary: tokenizer.json of the texts: of roberta-base, bert-base-uncased or gpt2.

    Raises:
        WeightsError: the vocabulary is missing, or an array is without which its shapes determine no model.
    """
    tensors = without_prefix(path, tensors, lambda _: MARKS.keys())
    layout = next(layout for mark, layout in MARKS.items() if mark in tensors)
    shapes = {name: array.shape for name, array in tensors.items()}
    try:
        text, text_rules = text_of(layout.text, shapes, vocabulary, laion=layout.format == LAION.format)
        sound, sound_rules = _sound_of(
            layout, tensors, shapes, gpt="wte.weight" in {name.removeprefix(layout.text) for name in shapes}
        )
    except (KeyError, IndexError, ValueError) as error:
        raise WeightsError(f"{path}: names of a CLAP, but {type(error).__name__}: {error} is missing or has odd axes") from None
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from None
    projections, embed_dim = _projection_rules(path, layout, shapes)
    kept = {name: x for name, x in tensors.items() if not _is_left_out(name, layout, text)}
    if left := [name for name in tensors if re.fullmatch(UNUSED, name)]:
        log.info("%s: %s is the scale; %d arrays on which no embedding depends are left out", path, layout.scale, len(left))
    rules = [Rule(SCALE, layout.scale, SCALAR), *sound_rules, *text_rules, *projections]
    return layout.format, Model({"sound": sound, "text": text}, embed_dim), rules, kept


def _is_left_out(name: str, layout: ClapLayout, text: TokenTower) -> bool:
    """True for constants, heads of classes, and what no embedding depends on."""
    patterns = [BUFFERS, FRONT_END, CLASSIFIERS, UNUSED, r"(.*\.)?(position_ids|token_type_ids)", r"(.*\.)?attn\.(masked_)?bias"]
    if getattr(text, "pool", None) != "pooler":
        patterns.append(rf"{re.escape(layout.text)}pooler\..*")
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def _sound_of(
    layout: ClapLayout, tensors: Mapping[str, Lazy], shapes: Shapes, *, gpt: bool
) -> tuple[HtsatTower | Cnn14Tower, list[Rule]]:
    """The tower of sounds and its rules."""
    at, laion = layout.sound, layout.format == LAION.format
    fused = f"{at}patch_embed.mel_conv2d.weight" in shapes
    waveform, mel = _heard(layout, tensors, fused, gpt)
    projection: Any = "mlp" if laion else "residual"
    if f"{at}conv_block1.conv1.weight" in shapes:
        if f"{at}fusion_model.local_att.0.weight" in shapes or f"{at}mel_conv2d.0.weight" in shapes:
            raise WeightsError("fusion of a PANN's sounds is not reproduced; that of HTS-AT's is")
        count = _count(shapes, rf"{re.escape(at)}conv_block\d+\.conv1\.weight")
        channels = tuple(shapes[f"{at}conv_block{i}.conv2.weight"][0] for i in range(1, count + 1))
        pann = Cnn14Tower(waveform, mel, channels, projection)
        return pann, cnn14_rules(pann, at)
    width, _, patch, _ = shapes[f"{at}patch_embed.proj.weight"]
    stages = 1 + _count(shapes, rf"{re.escape(at)}layers\.\d+\.downsample\.norm\.weight")
    depths = tuple(_count(shapes, rf"{re.escape(at)}layers\.{stage}\.blocks\.\d+\.norm1\.weight") for stage in range(stages))
    table = f"{at}layers.{{}}.blocks.0.attn.relative_position_bias_table"
    heads = tuple(shapes[table.format(stage)][1] for stage in range(stages))
    hidden, inner = shapes[f"{at}layers.0.blocks.0.mlp.fc1.weight"]
    tower = HtsatTower(
        waveform,
        mel,
        patch_size=patch,
        stem_width=width,
        depths=depths,
        heads=heads,
        window=(math.isqrt(shapes[table.format(0)][0]) + 1) // 2,
        mlp_ratio=hidden / inner,
        fused_seconds=FUSED_SECONDS if fused else None,
        fusion_ratio=width // shapes[f"{at}patch_embed.fusion_model.local_att.0.weight"][0] if fused else 4,
        projection=projection,
    )
    return tower, htsat_rules(tower, at, transformers=False)


def _heard(layout: ClapLayout, tensors: Mapping[str, Lazy], fused: bool, gpt: bool) -> tuple[Waveform, Mel]:
    """The waveform and the spectrogram that a file was trained on: of those of its kind the one whose filters it brings.

    Raises:
        WeightsError: it brings others.
    """
    waveform, known = LAION_WAVEFORM, [LAION_FUSED_MEL if fused else LAION_MEL]
    if layout.format == MICROSOFT.format:
        waveform = MSCLAP_2023_WAVEFORM if gpt else MSCLAP_2022_WAVEFORM
        known = [MSCLAP_2023_MEL, MSCLAP_2023_SAID] if gpt else [MSCLAP_2022_MEL]
    name = f"{layout.sound}logmel_extractor.melW"
    if name not in tensors or fused:  # whose sounds never meet these filters
        return waveform, known[0]
    theirs = np.asarray(tensors[name])
    for mel in known:
        ours = mel_bank(mel, waveform.sample_rate)
        if theirs.shape == ours.shape and np.allclose(theirs, ours, rtol=1e-3, atol=1e-6):
            return waveform, mel
    raise WeightsError(
        f"{name} are not the filters of {' or '.join(map(str, known))}; its sounds were made in another way, and features would "
        "be wrong"
    )


def _projection_rules(path: Path, layout: ClapLayout, shapes: Shapes) -> tuple[list[Rule], int]:
    """The rules of both projections, and the size of what they make."""
    if layout.format == MICROSOFT.format:
        rules = [
            *residual_rules("sound_projection", "audio_encoder.projection"),
            *residual_rules("text_projection", "caption_encoder.projection"),
        ]
        last = "caption_encoder.projection.linear2.weight"
    else:
        places = [(f"{ours}_projection/fc{i}", f"{theirs}_projection.{2 * i - 2}") for i in (1, 2) for ours, theirs in PAIRS]
        rules, last = [rule for pair in places for rule in dense_rules(*pair)], "text_projection.2.weight"
    if last not in shapes:
        raise WeightsError(f"{path}: names of a CLAP, but there is no {last}")
    return rules, shapes[last][0]


PAIRS = (("sound", "audio"), ("text", "text"))
"""Towers: our name, and LAION's."""


def _count(shapes: Shapes, pattern: str) -> int:
    return sum(re.fullmatch(pattern, name) is not None for name in shapes)
