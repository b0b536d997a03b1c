"""The user says nothing, or says the same again."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .text import likeness, plain, words
from .turns import UserTurn

SAME_TEXT = 0.9
SAME_QUESTION = 0.75
# Short texts, and longer ones that agree or thank, recur in any dialogue.
FEWEST_WORDS = 5
FEWEST_WORDS_OF_AGREEMENT = 16
_OPENER = re.compile(r"^\W*(?:yes|yeah|sure|ok|okay|of course|certainly|hi|hello|hey|sorry|no|well)\b\W*")
_AGREEMENT = re.compile(
    r"^\W*(?:yes|yeah|yep|yup|sure|ok|okay|alright|all right|correct|right|exactly|absolutely|of course|certainly|"
    r"perfect|great|good|"
    r"thanks|thank you|got it|i see(?=[.,!]|$)|i understand|understood|no|nope|not yet|please (?:do|go|proceed|"
    r"continue)|"
    r"sounds|that's (?:right|"
    r"correct|fine|all)|go ahead|hello|hi|confirmed|i confirm|i'm sure|done|that works|that would|"
    r"(?:i'd|i would|i want|i will|i'll) "
    r"(?:like )?(?:to )?(?:proceed|go ahead|continue|confirm|do that)|let's (?:do|go|proceed|continue)|please|i "
    r"agree)\b"
)
# "I don't have that information with me right now" answers many questions; with a matter of its own, it answers one.
_SHORT_ANSWER = re.compile(r"^\W*(?:i did that|i don't|i do not|i can't|i cannot|i have no|it is|it's|that is)\b")
FEWEST_WORDS_OF_ANSWER, FEWEST_OWN_WORDS = 8, 2
_ANY_ANSWER = frozenset(
    words(
        "about afraid any anything at available away but by can can't cannot currently details do don't exact for "
        "further hand have haven't i i'd i'm in info information is it it's just know me moment my near no not now "
        "number of off on one or other present provide really recall remember right sorry sure tell that that's "
        "the them there this time to unfortunately what with you"
    )
)
_NOTHING = re.compile(r"\W*(?:n/?a|none|null|undefined|nil|empty string|no response)\W*")
# A message that is one short note in brackets tells what the user does, not what it says.
_STAGE = re.compile(r"\W*(?:\([^()]{1,40}\)|\[[^\[\]]{1,40}\]|\*[^*]{1,40}\*|<[^<>]{1,40}>)\W*")


def says_nothing(turn: UserTurn) -> str | None:
    """The text of a turn without a word, or None. A turn that only ends the dialogue says something."""
    if "###" in turn.text:
        return None
    text = turn.said.strip()
    if not re.search(r"[^\W_]", text) or _NOTHING.fullmatch(text.lower()) or _STAGE.fullmatch(text):
        return repr(turn.text)
    return None


def repeats_itself(turn: UserTurn, earlier: Sequence[UserTurn]) -> str | None:
    """The text that the user says again though the agent has said something else meanwhile, or None.

    A report after an action may repeat, and so may the answer to a question that repeats.
    """
    told = _OPENER.sub("", plain(turn.said))
    if turn.acted or not _distinct(told):
        return None
    for before in earlier:
        if likeness(before.said, turn.said) >= SAME_TEXT and likeness(before.asked, turn.asked) < SAME_QUESTION:
            return turn.said
    return None


def _distinct(told: str) -> bool:
    """Whether the text is more than one that recurs in any dialogue."""
    count = len(words(told))
    if _AGREEMENT.search(told):
        return count >= FEWEST_WORDS_OF_AGREEMENT
    if _SHORT_ANSWER.search(told):
        return count >= FEWEST_WORDS_OF_ANSWER and len(set(words(told)) - _ANY_ANSWER) >= FEWEST_OWN_WORDS
    return count >= FEWEST_WORDS
