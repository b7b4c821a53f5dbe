"""ImageBind's weights: six towers of a file with its names, beside the same network in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jclip
from jclip.weights import WeightsError, read_weights

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.parity

SIZES = {"vision": (32, 2, 16), "text": (32, 2, 16), "audio": (24, 2, 12)}
SIZES |= {"depth": (16, 1, 8), "thermal": (24, 1, 12), "imu": (16, 1, 8)}
"""Width, blocks and heads."""
SCALES = {"text": 14.0, "audio": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
E, PATCHES = 8, {"vision": 4, "audio": 12 * 19, "depth": 4, "thermal": 4, "imu": 5}


def random_arrays() -> dict[str, Any]:
    """A file of the published names; two blocks at most, images of 8 pixels, motion of 40 measurements."""
    dice = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Any:
        return 0.3 * torch.randn(shape, generator=dice)

    arrays: dict[str, Any] = {}
    for name, (width, depth, _) in SIZES.items():
        at, head = f"modality_preprocessors.{name}", f"modality_heads.{name}"
        if name == "text":
            arrays[f"{at}.token_embedding.weight"], arrays[f"{at}.pos_embed"] = normal(49408, width), normal(1, 77, width)
            arrays[f"{at}.mask"] = torch.full((77, 77), float("-inf")).triu(1)
            norm, projection = f"{head}.proj.0", f"{head}.proj.1.weight"
        else:
            arrays[f"{at}.cls_token"] = normal(1, 1, width)
            arrays[f"{at}.pos_embedding_helper.pos_embed"] = normal(1, PATCHES[name] + 1, width)
            kernels = {"vision": (width, 3, 2, 4, 4), "audio": (width, 1, 16, 16), "depth": (width, 1, 4, 4)}
            kernels |= {"thermal": (width, 1, 4, 4), "imu": (width, 48)}
            stem = {"depth": "depth_stem", "imu": "imu_stem"}.get(name, "rgbt_stem")
            arrays[f"{at}.{stem}.proj{'.1' if name == 'vision' else ''}.weight"] = normal(*kernels[name])
            if name != "vision":
                arrays |= {f"{at}.{stem}.norm_layer.weight": normal(width) + 1, f"{at}.{stem}.norm_layer.bias": normal(width)}
            norm, projection = f"{head}.0", f"{head}.{3 if name == 'imu' else 2}.weight"
        arrays |= {f"{norm}.weight": normal(width) + 1, f"{norm}.bias": normal(width), projection: normal(E, width)}
        trunk = f"modality_trunks.{name}"
        if name == "vision":
            layer = f"{trunk}.pre_transformer_layer.0"
            arrays |= {f"{layer}.weight": normal(width) + 1, f"{layer}.bias": normal(width)}
        for i in range(depth):
            for leaf, tensor in block(width, name).state_dict().items():
                arrays[f"{trunk}.blocks.{i}.{leaf}"] = normal(*tensor.shape)
        if name in SCALES:
            arrays[f"modality_postprocessors.{name}.1.log_logit_scale"] = torch.tensor(SCALES[name]).log()
    return arrays


def block(width: int, name: str) -> Any:
    """Parameters of a block, as torch names them."""
    attention = torch.nn.MultiheadAttention(width, SIZES[name][2], add_bias_kv=name not in ("vision", "text"))
    mlp = torch.nn.ModuleDict({"fc1": torch.nn.Linear(width, 4 * width), "fc2": torch.nn.Linear(4 * width, width)})
    norms = {f"norm_{i}": torch.nn.LayerNorm(width, eps=1e-6) for i in (1, 2)}
    return torch.nn.ModuleDict({"attn": attention, "mlp": mlp, **norms})


def features(arrays: dict[str, Any], name: str, tokens: Any, at: Any) -> Any:
    """Unit vectors of tokens [b, l, width] with positions, of which that at `at` is pooled."""
    width, depth, _ = SIZES[name]
    mask = arrays["modality_preprocessors.text.mask"] if name == "text" else None
    if name == "vision":
        tokens = norm(arrays, "modality_trunks.vision.pre_transformer_layer.0", tokens)
    x = tokens.transpose(0, 1)
    for i in range(depth):
        part = block(width, name)
        at_block = f"modality_trunks.{name}.blocks.{i}."
        part.load_state_dict({k.removeprefix(at_block): v for k, v in arrays.items() if k.startswith(at_block)})
        y = part["norm_1"](x)
        x = x + part["attn"](y, y, y, need_weights=False, attn_mask=mask)[0]
        x = x + part["mlp"]["fc2"](torch.nn.functional.gelu(part["mlp"]["fc1"](part["norm_2"](x))))
    x = x.transpose(0, 1)[torch.arange(len(tokens)), at]
    head = f"modality_heads.{name}." + ("proj." if name == "text" else "")
    last = {"text": 1, "imu": 3}.get(name, 2)
    return torch.nn.functional.normalize(norm(arrays, f"{head}0", x) @ arrays[f"{head}{last}.weight"].T, dim=-1)


def norm(arrays: dict[str, Any], name: str, x: Any, eps: float = 1e-6) -> Any:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], arrays[f"{name}.weight"], arrays[f"{name}.bias"], eps)


def with_positions(arrays: dict[str, Any], name: str, patches: Any) -> Any:
    """Class token and patches [b, l, width], which a norm has seen but those of images."""
    at = f"modality_preprocessors.{name}"
    stem = {"depth": "depth_stem", "imu": "imu_stem"}.get(name, "rgbt_stem")
    if name != "vision":
        patches = norm(arrays, f"{at}.{stem}.norm_layer", patches, 1e-5)
    cls = arrays[f"{at}.cls_token"].expand(len(patches), -1, -1)
    return torch.cat([cls, patches], dim=1) + arrays[f"{at}.pos_embedding_helper.pos_embed"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    arrays = random_arrays()
    path = tmp_path_factory.mktemp("imagebind") / "imagebind_huge.pth"
    torch.save(arrays, path)
    return path, arrays


def test_every_tower_gives_the_features_of_the_same_network_in_torch(saved: tuple[Path, dict[str, Any]]) -> None:
    path, arrays = saved
    model = jclip.load(path)
    towers, dice = model.config.towers, np.random.default_rng(0)
    images = dice.integers(0, 256, (2, 8, 8, 3), np.uint8)
    how = towers["image"].preprocess
    pixels = torch.tensor((images / 255 - how.mean) / how.std, dtype=torch.float32).permute(0, 3, 1, 2)
    frames = pixels[:, :, None].repeat(1, 1, 2, 1, 1)
    stem = torch.nn.functional.conv3d(frames, arrays["modality_preprocessors.vision.rgbt_stem.proj.1.weight"], stride=(2, 4, 4))
    want = {"image": features(arrays, "vision", with_positions(arrays, "vision", stem.flatten(2).transpose(1, 2)), 0)}
    inputs: dict[str, Any] = {"image": images}
    for ours, theirs in (("depth", "depth"), ("thermal", "thermal")):
        tower = towers[ours]
        plane = dice.random((2, 8, 8, 1)).astype(np.float32)
        inputs[ours] = plane
        seen = torch.tensor((plane - tower.mean) / tower.std, dtype=torch.float32).permute(0, 3, 1, 2)
        name = f"modality_preprocessors.{theirs}.{'depth' if ours == 'depth' else 'rgbt'}_stem.proj.weight"
        patches = torch.nn.functional.conv2d(seen, arrays[name], stride=4).flatten(2).transpose(1, 2)
        want[ours] = features(arrays, theirs, with_positions(arrays, theirs, patches), 0)
    motion = dice.normal(size=(2, 6, 40)).astype(np.float32)
    inputs["imu"] = motion
    pieces = torch.tensor(motion).unfold(-1, 8, 8).permute(0, 2, 1, 3).reshape(2, -1, 48)
    patches = pieces @ arrays["modality_preprocessors.imu.imu_stem.proj.weight"].T
    want["imu"] = features(arrays, "imu", with_positions(arrays, "imu", patches), 0)
    ids = np.array(model.tokenize(["a dog that barks", "rain on a roof"]))
    table = arrays["modality_preprocessors.text.token_embedding.weight"]
    words = table[torch.tensor(ids)] + arrays["modality_preprocessors.text.pos_embed"]
    want["text"] = features(arrays, "text", words, torch.tensor(ids).argmax(dim=1))
    inputs["text"] = ids
    for name, rows in inputs.items():
        found = np.asarray(model.encode(model.params, name, rows))
        np.testing.assert_allclose(found, want[name].detach().numpy(), atol=1e-5, err_msg=name)


def test_sounds_are_seen_as_kaldis_filter_banks_of_one_clip(saved: tuple[Path, dict[str, Any]]) -> None:
    from jclip.models import Backend, log_mel

    path, arrays = saved
    model = jclip.load(path)
    tower = model.config.towers["sound"]
    waves = np.random.default_rng(1).uniform(-0.3, 0.3, (2, 32_000)).astype(np.float32)
    logs = torch.tensor(np.asarray(log_mel(waves, tower.mel, 16_000, Backend())))
    assert logs.shape == (2, 204, 128)
    stem = torch.nn.functional.conv2d(
        logs.transpose(1, 2)[:, None], arrays["modality_preprocessors.audio.rgbt_stem.proj.weight"], stride=10
    )
    want = features(arrays, "audio", with_positions(arrays, "audio", stem.flatten(2).transpose(1, 2)), 0)
    found = np.asarray(model.encode(model.params, "sound", waves))
    np.testing.assert_allclose(found, want.detach().numpy(), atol=1e-5)


def test_scales_are_those_of_the_pairs_with_images(saved: tuple[Path, dict[str, Any]]) -> None:
    found = {path: float(np.exp(array)) for path, array in read_weights(saved[0]) if path.endswith("logit_scale")}
    names = {"audio": "sound"}
    assert found == pytest.approx({f"image_{names.get(name, name)}/logit_scale": scale for name, scale in SCALES.items()})


def test_a_file_that_is_not_whole_is_refused(saved: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    arrays = dict(saved[1])
    del arrays["modality_trunks.imu.blocks.0.attn.bias_k"]
    torch.save(arrays, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"missing modality_trunks\.imu\.blocks\.0\.attn\.bias_k"):
        read_weights(tmp_path / "a.pth")
    del arrays["modality_preprocessors.depth.depth_stem.proj.weight"]
    torch.save(arrays, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="ImageBind's arrays are not all there"):
        read_weights(tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="which are of one model; leave out ViT-B-32"):
        read_weights(saved[0], "ViT-B-32")
