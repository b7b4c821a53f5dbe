"""The language of a text, by langid's model, which needs no network."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

from jclip.data.clean import whitespace
from jclip.data.source import SourceError

LONGEST = 2000
"""Letters of a text that are looked at."""


class Language(NamedTuple):
    """The likeliest language of a text."""

    code: str
    """ISO 639, such as en."""
    probability: float
    """Probability among all languages of the model, 0 to 1."""


def language_of(text: str) -> Language:
    """The likeliest language of a text, cleaned of mojibake and HTML; of one without letters any, with little probability.

    Raises:
        SourceError: the extra `filter` is missing.
    """
    code, probability = _identifier().classify(whitespace(text)[:LONGEST])
    return Language(str(code), float(probability) if math.isfinite(probability) else 0.0)


def known_languages() -> frozenset[str]:
    """Codes of the languages that are distinguished. Raises as `language_of`."""
    return frozenset(map(str, _identifier().nb_classes))


@lru_cache(maxsize=1)
def _identifier() -> Any:
    try:
        from py3langid import langid
    except ImportError as error:
        raise SourceError(f'languages: py3langid cannot be imported ({error}); pip install "jclip[filter]"') from None
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
