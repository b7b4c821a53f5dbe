"""Rules of a configuration: (regex on a parameter's path, value), of which the first that matches the whole path counts."""

import re
from collections.abc import Iterator


def rule_problems(at: str, rules: tuple[tuple[str, object], ...]) -> Iterator[str]:
    """Problems of rules that stand at `at`: there are none, or a regular expression cannot be read."""
    if not rules:
        yield f"{at} is empty, so no parameter has a value; end with a rule for '.*'"
    for pattern, _ in rules:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            yield f"{at}: {pattern!r} is no regular expression: {error}"
