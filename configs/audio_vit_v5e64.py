"""CLAP of a spectrogram ViT-B/16 with 8,192 pairs a batch, for a slice of 64 TPU v5e chips.

    tools/launch/tpu_slice.sh NAME ZONE configs/audio_vit_v5e64.py --data "/mnt/{00000..06299}.tar" --workdir /mnt/runs/clap

The towers and data of configs/clap.py. A quarter of the patches is dropped in training; parameters are whole on every chip;
blocks keep nothing for the backward pass; the loss goes around the chips. The spectrogram is made on the chips, by products with
their matrix units. Does it fit? See for yourself, on any x86 machine with the extra "tpu":

    jclip compile configs/audio_vit_v5e64.py --topology v5e:8x8

Compiled, not trained: neither time nor accuracy has been measured, and the learning rate is a place to start from.
"""

from jclip.config import Config, Contrastive, beside, replace_each


def get_config(data: str = "/data/clap/{00000..00999}.tar", val: str = "") -> Config:
    """The recipe; `data` and `val` are patterns of shards, or other sources (folder:DIR), `val` for retrieval every epoch."""
    return replace_each(
        beside(__file__, "clap.py", data=data, val=val),
        {
            "model.towers.sound.patch_dropout": 0.25,
            "model.remat": "nothing_saveable",
            "objectives.sound_text": Contrastive("sound", "text", method="ring", dtype="bfloat16", block=128),
            "data.workers": 32,
            "optim.lr": 5e-4,
            "optim.warmup": "2000",
            "optim.clip_norm": 1.0,
            "batch_size": 8192,
            "eval_batch_size": 4096,
        },
    )
