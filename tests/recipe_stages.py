"""The tiny recipe in two stages, for tests that start `jclip` as a user does."""

from test_stages import staged

from jclip.config import Config


def get_config() -> Config:
    """The configuration."""
    return staged()
