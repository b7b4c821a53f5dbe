"""The options of x-clip 0.14.4, by its names and with the values of its README, on shapes that are drawn while training.

    jclip train configs/xclip.py --workdir runs/xclip
    jclip train configs/xclip.py --workdir runs/tokens --use-all-token-embeds
    jclip train configs/xclip.py --workdir runs/texts --use-mlm --no-use-visual-ssl
    jclip train configs/xclip.py --size readme --data "webdataset:/data/{00000..00099}.tar" --workdir /runs/xclip

`--size readme` has the sizes of that snippet (512 wide, 6 deep, 8 heads, 256 pixels in patches of 32, texts of 256 tokens), for
an accelerator; `jclip compile configs/xclip.py --size readme --batch-size 4096 --topology v5e:4x4` says what it takes there.
What differs: tokens are those of CLIP's vocabulary; the scale begins at CLIP's value and is bounded, where x-clip's begins at e
and is not; heads have LayerNorm. Views for multiview_loss_weight leave extra_latent_projection out, and with
use_all_token_embeds the pooled embeddings, which evaluations read, are trained beside the tokens.
"""

from typing import Literal, NamedTuple

from jclip.config import (
    Augment,
    Config,
    Contrastive,
    Data,
    MaskedText,
    Model,
    MultiView,
    Objective,
    Optim,
    Retrieval,
    SimReg,
    SimSiam,
    TextTower,
    TokenWise,
    View,
    VisionTower,
    ZeroShot,
)

STRONG = Augment(scale=(0.2, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.3, grayscale=0.2, blur=0.2)


class Sizes(NamedTuple):
    """Arguments of x-clip that are sizes, and those of a batch and its self-supervision."""

    dim: int
    visual_enc_depth: int
    visual_heads: int
    visual_image_size: int
    visual_patch_size: int
    text_enc_depth: int
    text_heads: int
    text_seq_len: int
    hidden: int
    batch: int
    lr: float


SIZES = {
    "small": Sizes(128, 2, 2, 32, 8, 1, 2, 20, 256, 128, 1e-3),
    "readme": Sizes(512, 6, 8, 256, 32, 6, 8, 256, 4096, 1024, 5e-4),
}


def get_config(
    size: Literal["small", "readme"] = "small",
    data: str = "",
    visual_patch_dropout: float = 0.5,
    use_all_token_embeds: bool = False,
    decoupled_contrastive_learning: bool = True,
    extra_latent_projection: bool = True,
    use_visual_ssl: bool = True,
    image_ssl_loss_weight: float = 0.05,
    use_mlm: bool = False,
    text_ssl_loss_weight: float = 0.05,
    multiview_loss_weight: float = 0.0,
    sim_reg_loss_weight: float = 0.0,
) -> Config:
    """The recipe; `data` is a source of images with texts, empty: shapes. A multiview_loss_weight, x-clip's 0.1, adds a view."""
    s = SIZES[size]
    image = VisionTower(
        image_size=s.visual_image_size,
        patch_size=s.visual_patch_size,
        width=s.dim,
        depth=s.visual_enc_depth,
        heads=s.visual_heads,
        pool="avg",
        patch_dropout=visual_patch_dropout,
    )
    text = TextTower(
        context_length=s.text_seq_len,
        width=s.dim,
        depth=s.text_enc_depth,
        heads=s.text_heads,
        causal=False,
        mask_padding=True,
        pool="first",
    )
    images, texts = image_ssl_loss_weight * use_visual_ssl, text_ssl_loss_weight * use_mlm
    pairs = 1 - images - texts - multiview_loss_weight
    views, objectives = dict[str, View](), dict[str, Objective]()
    if multiview_loss_weight:
        views["image@0"] = View("image", augment=STRONG)
        further, decoupled = multiview_loss_weight / pairs, decoupled_contrastive_learning
        objectives["image_text"] = MultiView(("image", "image@0"), ("text",), weight=pairs, further=further, decoupled=decoupled)
    else:
        objectives["image_text"] = Contrastive(
            weight=pairs, decoupled=decoupled_contrastive_learning, extra_projections=extra_latent_projection
        )
    if use_all_token_embeds:
        objectives["tokens"] = TokenWise(weight=pairs, features=s.dim, decoupled=decoupled_contrastive_learning)
    if use_visual_ssl:
        views |= {f"image@{i}": View("image", augment=STRONG) for i in (1, 2)}
        objectives["visual_ssl"] = SimSiam(weight=images, features=256, hidden=s.hidden)
    if use_mlm:
        objectives["mlm"] = MaskedText(weight=texts, hidden=0.9, other=0.0)
    if sim_reg_loss_weight:
        objectives["sim_reg"] = SimReg(weight=sim_reg_loss_weight)
    shapes = f"size={s.visual_image_size}"
    return Config(
        model=Model(towers={"image": image, "text": text}, embed_dim=s.dim, dtype="float32" if size == "small" else "bfloat16"),
        data=Data(source=data or f"shapes:train?{shapes}&length=1000000", augment=Augment(scale=(0.8, 1.0), ratio=(1.0, 1.0))),
        optim=Optim(lr=s.lr, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        views=views,
        objectives=objectives,
        evals={
            "seen": ZeroShot(f"shapes:test?{shapes}&classes=seen", templates=("a {}",), every="25%"),
            "retrieval": Retrieval(f"shapes:val?{shapes}"),
        }
        if not data
        else {},
        batch_size=s.batch,
        duration="900" if size == "small" else "32ep",
        log_every=20,
    )
