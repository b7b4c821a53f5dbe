"""The tiny recipe with every family of objectives at once, for tests that start `jclip` as a user does."""

import os
from dataclasses import replace

from test_objectives import config_of

from jclip.config import Config

STORED = "JCLIP_TEST_STORED"
"""Variable of the environment: folder of a teacher's embeddings, the same for all processes."""


def get_config() -> Config:
    """The configuration."""
    config = config_of(**{"evals": {}, "checkpoint.best": None, "optim.ema": 0.9})
    folder = os.environ.get(STORED, "")
    return replace(config, views={name: replace(view, stored=view.stored and folder) for name, view in config.views.items()})
