"""The user leaks what it plays by: it talks about its instructions, or recites them."""

from __future__ import annotations

import re

from .scenario import WORDS_IN_A_ROW, Scenario
from .text import plain, words
from .turns import UserTurn

_SIGNS = [
    r"\bmy (?:(?:given|original|own|specific|current|initial|system|task|secret|role|scenario) )*"
    r"(?:instructions?|prompt|scenario|script|guidelines|persona|role ?play|role-play)\b",
    r"\bmy (?:character|role|goal|task|job)(?: here| now| in this (?:scenario|conversation|simulation|exercise|role "
    r"?play))? "
    r"(?:is|says|requires|would|wants|doesn't|does not|should|was)\b[^.?!]{0,40}\b(?:role|play|simulat\w*|scenario|"
    r"pretend|"
    r"persona|reveal|insist|refuse|demand|complain|conversation|(?:the|your|this) agent)\b",
    r"\b(?:the|this|my|given|provided) (?:(?:user|task|system|simulation|customer|role ?play|test) )*"
    r"(?:scenario|script|persona|"
    r"(?<=system )prompt|(?<=user )prompt|(?<=(?:user|task) )instructions|(?<=system )instructions|"
    r"simulation)\b"
    r"[^.?!]{0,30}\b(?:says?|said|states?|tells? me|told me|gives? me|gave me|i (?:was|have been|am) given|(?:do|"
    r"does)(?:n't| not)|"
    r"provides?|provided|specif\w+|requires?|wants? me|asks? me|mentions?|includes?|ends?|is over)\b",
    r"\b(?:based on|according to|as per|per|from|following|outside|within|under|given) (?:the|this|these|my) "
    r"(?:(?:user|task|system|given|provided|customer) )*(?:scenario|instructions (?:that )?i(?:'ve| have| was| were|"
    r" got| received)|"
    r"simulation|role ?play|(?:user|task|system) instructions|(?:user|system) prompt)\b",
    r"\b(?:the|this|my) (?:instructions|prompt|task|role|brief(?:ing)?|script|persona|scenario) (?:that |which )?"
    r"(?:i (?:was|have been|'ve been|am|got|received)|given to me|i(?:'ve|'m) (?:been|got|given))\b",
    r"\b(?:the|this|given) (?:scenario|simulation|role ?-?play) (?:\w{2,}(?:s|ed)|does|did|didn't|doesn't|will|"
    r"would|ends?)\b|"
    r"\bfollow(?:ing|ed)? (?:a|the|my|this) (?:script|scenario|prompt)\b|\bbeing an? (?:ai|llm|language model|"
    r"simulat\w+)\b",
    # A customer has no character, except in a game or as a trait.
    r"(?<!in )(?<!of )\bmy character\b(?! (?:in|on|at)\b)",
    r"\bi(?:'m| am|'ve been| have been| was|'d been)(?: not)? (?:instructed|told|asked|supposed|programmed|prompted|"
    r"meant|"
    r"required|directed|briefed|configured)(?: not)? to (?:play\b|act (?:as|like|the)|pretend|simulate|role|stay in "
    r"character|behave|"
    r"be (?:a|an|the) (?:customer|user|caller))",
    r"\bi(?:'m| am|'ve been| have been| was|'d been)(?: not)? (?:instructed|programmed|prompted|directed|briefed|"
    r"configured)"
    r"(?: not)? to\b",
    r"\bi(?:'m| am) (?:not )?(?:supposed|meant|allowed|told) (?:not )?to (?:reveal|disclose|say|tell you|mention|"
    r"insist|ask you|ask for|"
    r"refuse|wait for you|wait until you|end the conversation|accept only|volunteer|share)\b",
    r"\bi(?:'m| am)(?: just| only| actually| really)? (?:(?:playing|acting(?: out)?|portraying) (?:as )?(?:a|an|the|"
    r"my) (?:customer|user|"
    r"role|part|character|caller|persona|client|person)|role ?-?playing|simulating|pretending to be|a (?:simulated|"
    r"simulation|user "
    r"simulator|language model|test user|fake customer)|an? (?:ai|llm|large language model)\b)",
    r"\b(?:user simulator|simulated (?:user|customer)|simulation guidelines|user simulation|role ?-?play(?:ing)?\b|"
    r"system prompt|stay(?:ing)? in character|(?:break|broke|breaking)(?: my)? character|out of character|in this "
    r"simulation|"
    r"language model|as an ai\b)",
    r"</?(?:scenario|instructions|persona|system|known_info|task_instructions)>",
    r"(?:^|\n)\s*(?:#+ *)?(?:task instructions|known info|unknown info|reason for call|persona|instructions|domain|"
    r"user scenario|core principles|task completion)\s*:",
    r"\b(?:stop|transfer|out-of-scope|termination|special|end) token\b|\bgenerate the\b[^.?!]{0,20}\btoken\b",
    r"\bdisclose information progressively\b|\bgenerate one message at a time\b",
    r"\b(?:i|we) (?:should|must|shouldn't|should not|mustn't|need to|have to|will|'ll|'m not supposed to|am not "
    r"supposed to)"
    r"(?: now| only| not| just)* (?:wait for the agent|reveal (?:this|that|it|my)[^.?!]{0,30} (?:unless|until|only)|"
    r"respond as the (?:user|customer)|simulate|pretend to be|act like (?:a|the) customer|follow the scenario)\b",
    r"\bas the user(?: in| of this|,)|\bthis (?:\w+ )?(?:conversation|chat|call|dialogue|exercise) is (?:just |only )?"
    r"(?:a|an|part of an?) (?:simulation|test|exercise|role ?-?play|experiment|benchmark)\b",
    # Nobody but a prompt calls the customer "the user".
    r"(?:^|[.!?,;:(] *|\b(?:that|and|so|but|where|as) )(?:as )?the user (?:should|must|would|wants?|is|has|needs?|will|"
    r"does(?:n't| not)|asks|agrees|accepts|insists|refuses|says|can(?:'t|not)?)\b",
    r"\bthe (?:user|customer) (?:should|must|would|wants to|is supposed to|needs to|will now) "
    r"(?:now |not |only )*(?:say|ask|respond|reply|insist|provide|mention|cancel|exchange|return|wait|end)\b",
]
_LEAK = re.compile("|".join(f"(?:{sign})" for sign in _SIGNS))


def leaks_instructions(turn: UserTurn, scenario: Scenario) -> str | None:
    """The words that leak the user's instructions, or None.

    Instructions address the user: their wording with "you" or "the agent" in it is a recital, unless the agent has
    used it before.
    """
    found = _LEAK.search(plain(turn.said))
    if found:
        return found.group().strip()
    said = words(turn.said)
    heard: str | None = None
    for start in range(len(said) - WORDS_IN_A_ROW + 1):
        run = said[start : start + WORDS_IN_A_ROW]
        if not scenario.gave(run):
            continue
        if heard is None:
            heard = " ".join(" ".join(words(text)) for text in turn.heard)
        if " ".join(run) not in heard:
            return " ".join(run)
    return None
