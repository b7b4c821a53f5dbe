"""CLAP on drawn shapes that can be heard: sounds and their captions, trained from nothing on a laptop.

    jclip train configs/shapes_sound.py --workdir runs/shapes_sound
    jclip train configs/shapes_sound.py --images --workdir runs/shapes_bound

Two minutes of one core of an EPYC, to

    seen       93.4%: zero-shot accuracy on new sounds of the 56 classes of training (chance 1.8%)
    heldout    34%: of the other 8, timbres and pitches that never came together, among all 64 (chance 1.6%)
    retrieval  0.53 and 0.68, recall@10: which of 2,000 captions belongs to a sound, and the reverse; many are equally right

The sound of a scene has a tone for each object: its shape is the timbre, its colour the pitch, its size the loudness
(jclip/data/shapes_sounds.py). With images there are three towers, and sounds and images meet the same captions; sounds and
images are never compared in training.
"""

from jclip.config import (
    Augment,
    Checkpoint,
    Config,
    Contrastive,
    Data,
    Mel,
    Model,
    Optim,
    Retrieval,
    SoundAugment,
    SpecAugment,
    SpectrogramTower,
    Waveform,
    ZeroShot,
    beside,
)

PROMPTS = ("a {}", "a picture of a {}", "there is a {}")


def get_config(images: bool = False) -> Config:
    """The recipe; `images`: with a tower of images, too."""
    base = beside(__file__, "quickstart.py")
    sound = SpectrogramTower(
        Waveform(sample_rate=8000, seconds=0.5, short="pad"),
        Mel(n_fft=512, window=512, hop=80, mels=48, fmin=100.0, fmax=3800.0, mean=-25.0, std=14.0),
        patch_size=(48, 5),
        width=128,
        depth=2,
        heads=2,
        activation="gelu_tanh",
        pool="avg",
        spec_augment=SpecAugment(time_masks=1, time_width=5),
    )
    towers = {"sound": sound, "text": base.model.towers["text"]}
    objectives = {"sound_text": Contrastive("sound", "text", block=256)}
    evals = {
        "seen": ZeroShot("shapes:test?size=32&classes=seen", templates=PROMPTS, image="sound", every="25%"),
        "heldout": ZeroShot("shapes:heldout?size=32", templates=PROMPTS, image="sound", every="25%"),
        "retrieval": Retrieval("shapes:val?size=32", a="sound"),
    }
    if images:
        towers["image"] = base.model.towers["image"]
        objectives["image_text"] = Contrastive("image", "text", block=256)
        evals["seen_images"] = ZeroShot("shapes:test?size=32&classes=seen", templates=PROMPTS)
        evals["sounds_images"] = Retrieval("shapes:test?size=32&length=200", a="sound", b="image")
    return Config(
        model=Model(towers, embed_dim=128),
        data=Data(
            source="shapes:train?size=32&length=1000000",
            augment=Augment(scale=(1.0, 1.0), ratio=(1.0, 1.0)),
            sound_augment=SoundAugment(gain=(-3.0, 3.0), shift=0.05, invert=0.5),
        ),
        optim=Optim(lr=1.5e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        objectives=objectives,
        evals=evals,
        checkpoint=Checkpoint(every="25%"),
        batch_size=128,
        duration="900",
        log_every=20,
    )
