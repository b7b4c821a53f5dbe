"""The tiny recipe with a teacher, a queue and losses over all rows, for tests that start `jclip` as a user does."""

from test_objectives import config_of

from jclip.config import Config


def get_config() -> Config:
    """The configuration."""
    families = ("byol", "neighbours", "simclr", "tokens", "cloob", "extra", "multi", "sim_reg", "triplet")
    return config_of(*families, **{"evals": {}, "checkpoint.best": None, "optim.ema": 0.9})
