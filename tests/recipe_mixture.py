"""A mixture of three sources whose weights change, for tests that start `jclip` as a user does."""

from tiny import tiny_config

from jclip.config import Config, Data, Portion


def get_config() -> Config:
    """The configuration: weights change at step 30."""
    sources = {
        "seen": Portion("shapes:train?size=16&length=100", 0.6, changes=(("30", 0.2),)),
        "val": Portion("shapes:val?size=16&length=30", 0.3),
        "test": Portion("shapes:test?size=16&length=20", 0.1),
    }
    return tiny_config(
        data=Data(sources=sources), **{"checkpoint.every": "5", "duration": "60", "evals": {}, "checkpoint.best": None}
    )
