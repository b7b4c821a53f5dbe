"""The error of everything about foreign weights."""


class WeightsError(ValueError):
    """Weights cannot be read, or not be reproduced exactly; the message names the file, the cause and what to do."""
