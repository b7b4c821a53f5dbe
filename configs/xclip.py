"""The options of x-clip 0.14.4, by its names and with the weights of its README.

    jclip train configs/xclip.py --workdir runs/xclip
    jclip train configs/xclip.py --workdir runs/tokens --use-all-token-embeds
    jclip train configs/xclip.py --workdir runs/texts --use-mlm --no-use-visual-ssl
    jclip train configs/xclip.py --form clipart --data data/clipart --workdir runs/xclip_clipart
    jclip train configs/xclip.py --form large --data "/data/{00000..00099}.tar" --workdir /runs/xclip

Data, evaluations and length are those of configs/plain.py. The large form has the sizes of that README's snippet (512 wide,
6 deep, 8 heads, 256 pixels in patches of 32, texts of 256 tokens), for an accelerator: four TPU v5e chips need 5 of their
15.75 GiB, says `jclip compile configs/xclip.py --form large --topology v5e:2x2`.
What differs: tokens are those of CLIP's vocabulary; the scale begins at CLIP's value and is bounded, where x-clip's begins at e
and is not; heads have LayerNorm, and SimSiam's has hidden layers of 256, there of 4,096. Views for multiview_loss_weight leave
extra_latent_projection out, and with use_all_token_embeds the pooled embeddings, which evaluations read, are trained beside the
tokens.
"""

from typing import Literal

from jclip.config import (
    Augment,
    Config,
    Contrastive,
    Family,
    ImageTower,
    MaskedText,
    Model,
    MultiView,
    Optim,
    SimReg,
    SimSiam,
    TextTower,
    TokenWise,
    Tower,
    View,
    VisionTower,
    beside,
    replace_each,
)

STRONG = Augment(scale=(0.2, 1.0), flip=0.5, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.3, grayscale=0.2, blur=0.2)


SIZES = {
    "shapes": {
        "dim": 128,
        "visual_enc_depth": 2,
        "visual_heads": 2,
        "visual_image_size": 32,
        "visual_patch_size": 8,
        "text_enc_depth": 1,
        "text_heads": 2,
        "text_seq_len": 20,
        "ssl_hidden": 256,
    },
    "clipart": {
        "dim": 256,
        "visual_enc_depth": 6,
        "visual_heads": 4,
        "visual_image_size": 64,
        "visual_patch_size": 8,
        "text_enc_depth": 4,
        "text_heads": 4,
        "text_seq_len": 32,
        "ssl_hidden": 256,
    },
    "large": {
        "dim": 512,
        "visual_enc_depth": 6,
        "visual_heads": 8,
        "visual_image_size": 256,
        "visual_patch_size": 32,
        "text_enc_depth": 6,
        "text_heads": 8,
        "text_seq_len": 256,
        "ssl_hidden": 4096,
    },
}
"""Sizes of each form by x-clip's names; `dim` is its dim_text, dim_image and dim_latent."""


def get_config(
    form: Literal["shapes", "clipart", "large"] = "shapes",
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
    """The recipe; form and data are those of configs/plain.py. A multiview_loss_weight, x-clip's 0.1, adds a view."""
    plain, sizes, large = beside(__file__, "plain.py", form=form, data=data), SIZES[form], form == "large"
    images, texts = image_ssl_loss_weight * use_visual_ssl, text_ssl_loss_weight * use_mlm
    pairs = 1 - images - texts - multiview_loss_weight
    views, objectives = dict[str, View](), dict[str, Family]()
    if multiview_loss_weight:
        views["image@0"] = View("image", augment=STRONG)
        further, decoupled = multiview_loss_weight / pairs, decoupled_contrastive_learning
        objectives["image_text"] = MultiView(("image", "image@0"), ("text",), weight=pairs, further=further, decoupled=decoupled)
    else:
        objectives["image_text"] = Contrastive(
            weight=pairs, decoupled=decoupled_contrastive_learning, extra_projections=extra_latent_projection
        )
    if use_all_token_embeds:
        objectives["tokens"] = TokenWise(weight=pairs, features=sizes["dim"], decoupled=decoupled_contrastive_learning)
    if use_visual_ssl:
        views |= {f"image@{i}": View("image", augment=STRONG) for i in (1, 2)}
        objectives["visual_ssl"] = SimSiam(weight=images, features=256, hidden=sizes["ssl_hidden"])
    if use_mlm:
        objectives["mlm"] = MaskedText(weight=texts, hidden=0.9, other=0.0)
    if sim_reg_loss_weight:
        objectives["sim_reg"] = SimReg(weight=sim_reg_loss_weight)
    optim = Optim(lr=5e-4 if large else 1e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0)
    model = model_of(sizes, visual_patch_dropout, plain.model.towers["image"], large)
    changes = {"model": model, "optim": optim, "views": views, "objectives": objectives}
    return replace_each(plain, changes | {"batch_size": 1024 if large else plain.batch_size})


def model_of(sizes: dict[str, int], patch_dropout: float, seen: Tower, large: bool) -> Model:
    """x-clip's towers of these sizes, with the preprocessing of `seen`."""
    assert isinstance(seen, ImageTower)
    image = VisionTower(
        image_size=sizes["visual_image_size"],
        patch_size=sizes["visual_patch_size"],
        width=sizes["dim"],
        depth=sizes["visual_enc_depth"],
        heads=sizes["visual_heads"],
        pool="avg",
        patch_dropout=patch_dropout,
        preprocess=seen.preprocess,
    )
    text = TextTower(
        context_length=sizes["text_seq_len"],
        width=sizes["dim"],
        depth=sizes["text_enc_depth"],
        heads=sizes["text_heads"],
        causal=False,
        mask_padding=True,
        pool="first",
    )
    return Model(
        towers={"image": image, "text": text},
        embed_dim=sizes["dim"],
        dtype="bfloat16" if large else "float32",
        scan=large,
        remat="nothing_saveable" if large else "none",
    )
