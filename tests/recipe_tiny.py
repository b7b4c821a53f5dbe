"""The recipe of tests/tiny.py, for tests that start `jclip` as a user does."""

from tiny import tiny_config

from jclip.config import Config


def get_config() -> Config:
    """The tiny configuration."""
    return tiny_config()
