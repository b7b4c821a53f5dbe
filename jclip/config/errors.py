"""The error of a configuration that cannot be run."""


class ConfigError(ValueError):
    """A configuration is unknown, misspelt or contradicts itself; the message says what to do."""
