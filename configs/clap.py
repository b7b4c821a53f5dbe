"""CLAP on shards of sounds and captions, for one GPU host: a spectrogram transformer, with the numbers of LAION-CLAP.

    jclip train configs/clap.py --data "/data/clap/{00000..00999}.tar" --workdir runs/clap
    python tools/make_sounds.py runs/sounds
    jclip train configs/clap.py --small --data runs/sounds --workdir runs/clap_small

Samples are KEY.flac (or .wav, .ogg, .mp3) with KEY.txt, or with KEY.json whose "text" is a caption or a list of several, as
LAION-Audio-630K's shards have it. Sounds are heard for 10 s at 48 kHz, a random part of longer ones, shorter ones repeated; the
log-mel spectrogram is LAION-CLAP's without fusion, 64 mels of 1,001 frames. Batch (96 on each of 8 GPUs), Adam without decay,
learning rate, warm-up and masks of the spectrogram are LAION-CLAP's (Wu et al. 2023). The tower of sounds is a ViT-B/16 of 248
patches in place of an HTSAT, and that of texts CLIP's in place of RoBERTa, both from nothing.

Mel.mean and Mel.std are a guess for recordings; docs/tutorials/sound.md says how to measure those of your data. Neither time nor
accuracy has been measured: a test trains two steps of it, with one block a tower.

--small was: some ten minutes of one core, to a zero-shot accuracy of 56.8% on the fold of ESC-50's layout that it has not
seen, of 50 synthesised classes (chance 2%; with --captions 43.3%; one run each).
"""

from jclip.config import (
    LAION_MEL,
    LAION_WAVEFORM,
    Caption,
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
    TextTower,
    Waveform,
    ZeroShot,
    replace,
    source_of,
)


def get_config(data: str = "/data/clap/{00000..00999}.tar", val: str = "", small: bool = False, captions: bool = False) -> Config:
    """The recipe; `data` and `val` are patterns of shards, or other sources (folder:DIR), `val` for retrieval every epoch.

    `small`: two small towers, and `data` a folder in ESC-50's layout, whose fifth fold is held out. `captions`: with a decoder
    that writes them.
    """
    base = small_config(data) if small else large_config(data, val)
    return replace(base, "objectives", {**base.objectives, "caption": Caption("sound", "text")}) if captions else base


def small_config(data: str) -> Config:
    """CLAP for two cores: 5 s at 16 kHz in stripes of all mels and 100 ms, and the names of classes as captions."""
    sound = SpectrogramTower(
        Waveform(sample_rate=16_000, seconds=5.0),
        Mel(n_fft=1024, window=1024, hop=160, fmax=8000.0, mean=-40.0, std=25.0),
        patch_size=(64, 10),
        width=96,
        depth=2,
        heads=2,
        activation="gelu_tanh",
        pool="avg",
        spec_augment=SpecAugment(time_masks=2, time_width=32, mel_masks=1, mel_width=4),
    )
    text = TextTower(context_length=16, width=64, depth=2, heads=2, activation="gelu_tanh")
    folds = ("1,2,3,4", "5")
    train, test = (f"esc50:{data}?folds={fold}" for fold in folds)
    return Config(
        model=Model({"sound": sound, "text": text}, embed_dim=64),
        data=Data(train, fields={"text": "a sound of {label}"}, sound_augment=SoundAugment(shift=0.5, invert=0.5)),
        optim=Optim(lr=1.5e-3, warmup="5%", weight_decay=0.05, clip_norm=1.0),
        objectives={"sound_text": Contrastive("sound", "text")},
        evals={"fifth": ZeroShot(test, image="sound", ks=(1, 5, 10), every="25%")},
        checkpoint=Checkpoint(every="25%"),
        batch_size=128,
        duration="400",
        log_every=20,
    )


def large_config(data: str, val: str) -> Config:
    """LAION-CLAP's numbers."""
    mel = replace(replace(LAION_MEL, "mean", -40.0), "std", 25.0)
    masks = SpecAugment(time_masks=2, time_width=64, mel_masks=2, mel_width=8)
    sound = SpectrogramTower(LAION_WAVEFORM, mel, pre_norm=False, patch_bias=True, spec_augment=masks)
    return Config(
        model=Model(
            {"sound": sound, "text": TextTower()},
            embed_dim=512,
            dtype="bfloat16",
            scan=True,
            remat="dots_with_no_batch_dims_saveable",
        ),
        data=Data(source=source_of(data), fields={"text": "text | json.text"}, workers=8),
        optim=Optim(lr=1e-4, warmup="3200", weight_decay=0.0, b1=0.9, b2=0.999, eps=1e-8),
        objectives={"sound_text": Contrastive("sound", "text")},
        evals={"val/retrieval": Retrieval(source_of(val), a="sound", every="1ep")} if val else {},
        checkpoint=Checkpoint(every="1ep", best="val/retrieval/mean/recall@10" if val else None),
        batch_size=768,
        eval_batch_size=256,
        duration="45ep",
        log_every=50,
    )
