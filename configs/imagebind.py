"""ImageBind (Girdhar et al. 2023): pairs of images with anything else bind all of it, also what was never seen together.

    jclip train configs/imagebind.py --workdir runs/bound
    jclip train configs/imagebind.py --large --weights hf://laion/CLIP-ViT-H-14-laion2B-s32B-b79K --workdir /runs/imagebind
    jclip compile configs/imagebind.py --large --topology v5e:4x8

By itself: drawn scenes, half of them with a caption and the others with their sound; no caption is ever seen beside a sound.
Images meet both. What is emergent is measured: which of the classes a sound belongs to, by texts. With --duration 600 (six
minutes of processors) it is 86.0% of 56, chance 1.8%; see docs/tutorials/binding.md.

--large: the towers of images and texts are somebody's weights, locked; those of sounds, depth, heat and motion are ImageBind's
and new, each bound to images by a scale of its own, which stays (20, 5, 10 and 5). Each has shards of its own, whose samples have
an image and sound.*, depth.png, thermal.png or imu.npy: --sound "/data/audioset/{00000..01999}.tar" --imu "/data/ego4d/*.tar"; an
empty pattern leaves a sensor out. Neither time nor accuracy of it has been measured.
"""

from jclip import find_model
from jclip.config import (
    IMAGEBIND_MEL,
    IMAGEBIND_WAVEFORM,
    Checkpoint,
    Config,
    Contrastive,
    Data,
    DepthTower,
    ImuTower,
    InitFrom,
    Model,
    Optim,
    Portion,
    Retrieval,
    SpectrogramTower,
    ThermalTower,
    ZeroShot,
    beside,
    replace_each,
    source_of,
)

LOCKED = r"(image|text)(_projection)?/.*"
SENSORS = {
    "sound": SpectrogramTower(
        IMAGEBIND_WAVEFORM, IMAGEBIND_MEL, stride=10, pre_norm=False, patch_norm=True, extra_key=True, norm_eps=1e-6
    ),
    "depth": DepthTower(extra_key=True),
    "thermal": ThermalTower(extra_key=True),
    "imu": ImuTower(extra_key=True),
}
SCALES = {"sound": 20.0, "depth": 5.0, "thermal": 10.0, "imu": 5.0}
FIELDS = {"depth": "depth.png", "thermal": "thermal.png", "imu": "imu.npy"}
PROMPTS = ("a {}", "a picture of a {}", "there is a {}")


def get_config(
    large: bool = False,
    weights: str = "ViT-H-14",
    sound: str = "/data/audioset/{00000..01999}.tar",
    depth: str = "/data/sun/{00000..00009}.tar",
    thermal: str = "",
    imu: str = "",
) -> Config:
    """The recipe; all but `large` are of the large form. An architecture as `weights` is good for `jclip compile`."""
    patterns = {"sound": sound, "depth": depth, "thermal": thermal, "imu": imu}
    return _large(weights, {name: pattern for name, pattern in patterns.items() if pattern}) if large else _shapes()


def _shapes() -> Config:
    base = beside(__file__, "shapes_sound.py", images=True)
    scenes = "shapes:train?size=32&length=500000"
    return replace_each(
        base,
        {
            "data.source": Data.source,
            "data.sources": {
                "captioned": Portion(scenes, fields={"sound": ""}),
                "heard": Portion(f"{scenes}&seed=1", fields={"text": ""}),
            },
            "data.optional": ("sound", "text"),
            "objectives": {
                "image_text": Contrastive("image", "text", block=256),
                "image_sound": Contrastive("image", "sound", logit_scale=20.0, block=256),
            },
            "optim.lr_rules": (("image_sound/logit_scale", 0.0), (".*", 1.0)),
            "evals": {
                "images": ZeroShot("shapes:test?size=32&classes=seen", templates=PROMPTS),
                "emergent": ZeroShot("shapes:test?size=32&classes=seen", templates=PROMPTS, image="sound", every="25%"),
                "sound_to_image": Retrieval("shapes:val?size=32&length=200", a="sound", b="image"),
                "both_to_text": Retrieval("shapes:val?size=32&length=200", a="image+sound"),
            },
            "batch_size": 256,
        },
    )


def _large(weights: str, sources: dict[str, str]) -> Config:
    model = find_model(weights)
    sensors = {name: SENSORS[name] for name in sources}
    fields = dict.fromkeys(sensors, "")
    portions = {
        name: Portion(source_of(pattern), 1.0, fields={**fields, name: FIELDS.get(name, name)})
        for name, pattern in sources.items()
    }
    return Config(
        model=Model({**model.towers, **sensors}, model.embed_dim, dtype="bfloat16", scan=True, remat="nothing_saveable"),
        data=Data(sources=portions, optional=tuple(sensors), workers=8),
        init_from=InitFrom(weights, rules=((LOCKED, "load"), (r".*", "scratch"))),
        objectives={f"image_{name}": Contrastive("image", name, logit_scale=SCALES[name]) for name in sensors},
        optim=Optim(
            lr=5e-4,
            warmup="5%",
            weight_decay=0.2,
            clip_norm=1.0,
            lr_rules=((LOCKED, 0.0), (r"image_\w+/logit_scale", 0.0), (r".*", 1.0)),
        ),
        checkpoint=Checkpoint(every="1ep"),
        batch_size=2048,
        eval_batch_size=256,
        duration="64ep",
        log_every=50,
    )
