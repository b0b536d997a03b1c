"""Words that hold secrets, on their way to the processes that we start: in a variable, which only this user can read,
and not on a command line, which every user of the machine can."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from tau2_lightning.config.secrets import is_secret_word

VARIABLE = "TAU2_LIGHTNING_SECRET_WORDS"


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the words for the command line of a child, the variables that bring it the others)."""
    secret = [word for word in words if is_secret_word(word)]
    plain = [word for word in words if not is_secret_word(word)]
    return plain, {VARIABLE: json.dumps(secret)} if secret else {}


def words_of_parent() -> list[str]:
    """The words that the parent process gave in the variable. It stays, for the other ranks that this process may
    start: they run its command line again."""
    return list(json.loads(os.environ.get(VARIABLE, "[]")))
