"""The run of tests/test_sound_runs.py with all that is random about sounds, for tests that start `jclip` as a user does."""

import dataclasses

from test_sound_runs import config

from jclip.config import Config, SoundMix


def get_config() -> Config:
    """Crop, loudness, shift, sign and mixtures on the host, masks and patch dropout on the device."""
    base = config(evals={}, duration="10", batch_size=16)
    changes = dataclasses.replace(base.data.sound_augment, shift=0.5)
    data = dataclasses.replace(base.data, sound_mix=SoundMix(0.5), sound_augment=changes)
    return dataclasses.replace(base, data=data, checkpoint=dataclasses.replace(base.checkpoint, every="4"))
