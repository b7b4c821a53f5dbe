"""Names of the parameters of HTS-AT and CNN14 in transformers, LAION-CLAP and MS-CLAP."""

from jclip.config import Cnn14Tower, HtsatTower
from jclip.weights.layout import CONV, Layout, Rule, dense_rules, norm_rules, stacked_rules

SCALE = "sound_text/logit_scale"
"""Our parameter of the objective of sounds and texts."""

BUFFERS = r"(.*\.)?(relative_position_index|attn_mask|num_batches_tracked)"
"""Names of arrays that are no parameters: constants, and a count of training."""

FRONT_END = r"(.*\.)?(spectrogram_extractor|logmel_extractor)\..*"
"""Names of constants that torchlibrosa keeps: windows, Fourier matrices and filters, which `Mel` says."""

CLASSIFIERS = r"(.*\.)?(tscam_conv|head|fc_audioset)\.(weight|bias)"
"""Names of the heads that classified AudioSet's classes, behind the embedding."""

POINT = Layout(lambda x: x.reshape(x.shape[:2]).T, lambda x: x.T[:, :, None, None])
"""torch.nn.Conv2d of single places keeps [out, in, 1, 1], we keep [in, out]."""


def patch_layout(height: int, width: int) -> Layout:
    """torch.nn.Conv2d keeps the embedding of patches as [out, 1, height, width], we keep [height * width, out]."""
    return Layout(lambda x: x.reshape(len(x), -1).T, lambda x: x.T.reshape(-1, 1, height, width))


def kept_norm_rules(ours: str, theirs: str) -> list[Rule]:
    """Batch normalisation as torch's, with its means and variances."""
    statistics = [Rule(f"{ours}/mean", f"{theirs}.running_mean"), Rule(f"{ours}/var", f"{theirs}.running_var")]
    return [*norm_rules(ours, theirs), *statistics]


def htsat_rules(tower: HtsatTower, at: str, *, transformers: bool) -> list[Rule]:
    """A rule for every parameter of HTS-AT; its names begin with `at`, and are transformers' or those of its authors."""
    block = _transformers_block if transformers else _authors_block
    patch, size = f"{at}patch_embed", tower.patch_size
    found = [
        *kept_norm_rules("sound/mel/norm", f"{at}{'batch_norm' if transformers else 'bn0'}"),
        *_conv_rules("sound/patch_embed/proj", f"{patch}.proj", patch_layout(size, size)),
        *norm_rules("sound/patch_embed/norm", f"{patch}.norm"),
        *(_fusion_rules(f"{patch}.", size) if tower.fused_seconds is not None else []),
        *norm_rules("sound/norm", f"{at}norm"),
    ]
    for stage, depth in enumerate(tower.depths):
        for i in range(depth):
            found += block(f"sound/stage{stage + 1}_{i}", f"{at}layers.{stage}.blocks.{i}")
        if stage + 1 < len(tower.depths):
            ours, theirs = f"sound/merge{stage + 1}", f"{at}layers.{stage}.downsample"
            found += [*norm_rules(f"{ours}/norm", f"{theirs}.norm"), *dense_rules(f"{ours}/reduce", f"{theirs}.reduction")[:1]]
    return found


def cnn14_rules(tower: Cnn14Tower, at: str) -> list[Rule]:
    """A rule for every parameter of CNN14; its names begin with `at`."""
    found = [*kept_norm_rules("sound/mel/norm", f"{at}bn0"), *dense_rules("sound/fc", f"{at}fc1")]
    for block in range(1, len(tower.channels) + 1):
        for i in (1, 2):
            ours, theirs = f"sound/block{block}/conv{i}", f"{at}conv_block{block}"
            found += [Rule(f"{ours}/kernel", f"{theirs}.conv{i}.weight", CONV), *kept_norm_rules(ours, f"{theirs}.bn{i}")]
    return found


def residual_rules(ours: str, theirs: str) -> list[Rule]:
    """The projection of MS-CLAP."""
    dense = [rule for i in (1, 2) for rule in dense_rules(f"{ours}/fc{i}", f"{theirs}.linear{i}")[:1]]
    return [*dense, *norm_rules(f"{ours}/norm", f"{theirs}.layer_norm")]


def _conv_rules(ours: str, theirs: str, layout: Layout) -> list[Rule]:
    return [Rule(f"{ours}/kernel", f"{theirs}.weight", layout), Rule(f"{ours}/bias", f"{theirs}.bias")]


def _fusion_rules(at: str, size: int) -> list[Rule]:
    ours, found = (
        "sound/patch_embed/fusion",
        _conv_rules("sound/patch_embed/parts", f"{at}mel_conv2d", patch_layout(size, 3 * size)),
    )
    for name, first in (("local", 0), ("global", 1)):  # which begins with a mean
        theirs = f"{at}fusion_model.{name}_att"
        for i, place in ((1, first), (2, first + 3)):
            found += _conv_rules(f"{ours}/{name}_fc{i}", f"{theirs}.{place}", POINT)
            found += kept_norm_rules(f"{ours}/{name}_norm{i}", f"{theirs}.{place + 1}")
    return found


def _transformers_block(ours: str, theirs: str) -> list[Rule]:
    dense = [(f"attn/{name[0]}", f"attention.self.{name}") for name in ("query", "key", "value")]
    dense += [("attn/out", "attention.output.dense"), ("mlp/fc1", "intermediate.dense"), ("mlp/fc2", "output.dense")]
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.layernorm_before"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.layernorm_after"),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
        Rule(f"{ours}/attn/bias_table", f"{theirs}.attention.self.relative_position_bias_table"),
    ]


def _authors_block(ours: str, theirs: str) -> list[Rule]:
    dense = (("attn/out", "attn.proj"), ("mlp/fc1", "mlp.fc1"), ("mlp/fc2", "mlp.fc2"))
    return [
        *norm_rules(f"{ours}/norm1", f"{theirs}.norm1"),
        *norm_rules(f"{ours}/norm2", f"{theirs}.norm2"),
        *stacked_rules(f"{ours}/attn", f"{theirs}.attn.qkv."),
        *(rule for a, b in dense for rule in dense_rules(f"{ours}/{a}", f"{theirs}.{b}")),
        Rule(f"{ours}/attn/bias_table", f"{theirs}.attn.relative_position_bias_table"),
    ]
