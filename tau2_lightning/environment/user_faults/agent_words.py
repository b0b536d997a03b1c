"""What the agent's texts do: ask, ask for a step, announce work, transfer, or close."""

from __future__ import annotations

import re
from functools import lru_cache

from .text import plain, sentences, without_quotes

_ANYTHING_ELSE = re.compile(
    r"\b(?:anything|something) (?:else|more|further)\b|\bany (?:other|further|more|additional) (?:questions?|concerns?|"
    r"requests?|assistance|help|issues?)\b|\b(?:further|more|additional|other) (?:assistance|help|questions)\b|"
    r"\bhow else (?:can|may) i\b|\bfeel free to\b|\bdon't hesitate\b|\bif you (?:need|have|change|decide|would like|"
    r"'d like|"
    r"want|find|remember|are ready)\b|\b(?:whenever|once|when) you(?:'re| are| have| find| remember| decide)\b|"
    r"\btake your time\b"
)
_FAREWELL = re.compile(
    r"\b(?:goodbye|good bye|bye|farewell|take care|safe (?:travels?|trip|flight|journey)|have a (?:great|good|nice|"
    r"wonderful|"
    r"lovely|pleasant|safe|fantastic)|enjoy your|you're (?:very )?welcome|glad (?:i|we) could|happy (?:i|we) could|"
    r"thank you for (?:calling|contacting|choosing|flying|shopping|your (?:business|understanding|patience))|"
    r"you(?:'re| are)? (?:should be )?all set|is there anything else)\b"
)
_REQUEST = re.compile(
    r"(?:^|[,;:] |\band )(?:please|kindly|now,? please|can you please|could you please|try|go to|open|tap|turn|toggle|"
    r"check|restart|reboot|run|let me know)\b|\blet me know (?:what|whether|if (?:it|that|this|the)|when|how|once|"
    r"which)\b|"
    r"\bi(?:'ll| will| do|'d| would)? (?:(?:just|still|also|first|only|really) )*(?:need|require)\b(?! (?:to "
    r"(?!know|have|hear|ask|understand|learn|be sure|clarify)|(?:a|one|some|more) (?:\w+ )?(?:moment|second|"
    r"minute|time|bit)))|"
    r"\b(?:i|we)(?:'d| would)? (?:still |also |first |just |really )*(?:like|love|have|need|want) to (?:know|hear|"
    r"ask|understand|learn)\b|\bi(?:'m|"
    r" am)? wonder(?:ing)?\b|"
    r"\bi(?:'m| am) (?:still )?(?:asking|waiting) (?:for|whether|if|what|which)\b|"
    r"^(?:(?:now|then|first|next|so|again|and|sorry),? )?(?:tell|show|give|send|confirm|describe|specify|choose|pick|"
    r"select|enter|state|name)\b|"
    # The agent cannot go on without the user.
    r"\b(?:i|we)(?:'m| am|'re| are)? (?:still |also )*(?:can't|cannot|can not|could not|couldn't|not able to|unable to|"
    r"won't be able to|have to|must|need to)\b[^.?!]{0,60}\b(?:before|until|unless|without)\b|"
    r"\b(?:i|we)(?:'m| am|'re| are)? (?:\w+ )?(?:don't|do not|didn't|did not|haven't|have not|not) (?:\w+ )?(?:know|"
    r"have|caught|catch|get|got|gotten|understand|sure|received|seen)\b[^.?!]{0,20}\b(?:your|what|which|who|"
    r"whether|how|"
    r"when|if|why)\b|\byou (?:\w+ )?(?:haven't|have not|didn't|did not) (?:\w+ )?(?:tell|told|give|given|say|said|"
    r"answer|answered|"
    r"mention|mentioned|provide|provided)\b|\b(?:is|are) (?:still |only )?missing\b|\b(?:tell|give|send|show) me\b|"
    r"\bi (?:have to|must) (?:ask|know)\b|\bplease "
    r"(?!note\b|feel\b|don't hesitate|"
    r"let me know if you|do not hesitate|reach out|be aware|keep in mind|allow|expect)\w+"
)
_WORKING = re.compile(
    r"\b(?:one|a) moment\b|\b(?:please )?(?:hold|wait|bear with me|give me)\b[^.?!]{0,30}\b(?:moment|second|minute|"
    r"on)\b|"
    r"\b(?:let me|i'll|i will|i am going to|i'm going to|let's|next,? i)(?: now| first| just| quickly| go ahead and|"
    r" start by| "
    r"proceed to|also )* (?!know\b|be\b|need\b|wait\b|have to\b|not\b|never\b|note\b|pass\b|forward\b|make sure\b|"
    r"keep\b|let\b|leave\b|remember\b|see you\b|miss\b|transfer\b|connect\b|escalate\b|hand\b|summari[sz]e\b|"
    r"(?:explain|clarify|tell|repeat|say|walk|guide|help|assist)\b)\w+|"
    r"\bi am now going to (?!transfer|connect)|\b(?:i'm|i am)(?: now| currently| just)* (?!going\b|"
    r"looking forward\b|hoping\b|wondering\b|asking\b|waiting\b|"
    r"missing\b|transferring\b|connecting\b|escalating\b|handing\b)\w+ing\b|"
    r"\bi (?:first |just |also )*(?:have to|need to|must) (?:first |just |also |quickly )*(?!ask|know|say|inform|tell|"
    r"follow|admit|transfer|hear|confirm with)\w+\b"
)
_TRANSFER = re.compile(
    r"\btransfer(?:r?ing|red)?\b|\bconnect(?:ing|ed)?(?: you)? (?:to|with)\b|\bescalat(?:e|ing|ed)\b|\bhand(?:ing|ed)? "
    r"you over\b|"
    r"\bput(?:ting)? you through\b"
)
_NOT_TRANSFER = re.compile(
    r"\?|\b(?:cannot|can't|unable|not able|won't|don't|do not|did not|didn't|no need|(?:i'd|would|we'd) (?:have|"
    r"need) to|without|if you|would you|"
    r"should you|"
    r"could|not|offer|possible|happy to|able to|willing|recommend|suggest|would need|may need|might|option|"
    r"instead of|either|unless|until|before)\b|"
    r"\b(?:bank|money|data|funds|file|balance|wire|ownership|sim) transfer|\btransfer (?:\w+ ){0,3}(?:data|photos|"
    r"files|money|"
    r"funds|ownership|balance)\b|\bi can (?:transfer|connect|escalate|put|hand)\b"
)


@lru_cache(maxsize=4096)
def _parts(text: str) -> tuple[str, ...]:
    return tuple(sentences(plain(text)))


def questions(text: str) -> tuple[str, ...]:
    """What the agent wants to be told or confirmed: its questions and requests, without "anything else?"."""
    wanted, before = [], ""
    for part in _parts(text):
        asks = "?" in part or _REQUEST.search(part)
        if asks and not _ANYTHING_ELSE.search(part) and not _COURTESY.search(part):
            # "Could you share it?" asks for what the sentence before names.
            wanted.append(f"{before} {part}".strip() if _PRONOUN.search(part) else part)
        before = part
    return tuple(wanted)


_PRONOUN = re.compile(r"\b(?:it|its|that|this|them|those|these|one|there|here)\b")


_COURTESY = re.compile(
    r"\bhow (?:can|may|could) i (?:help|assist)\b|\bwhat (?:else )?can i do(?: for you)?\b|\b(?:what|how|"
    r"who) else\b|\bwould that be all\b|\bis that all\b"
)


def says_farewell(text: str) -> bool:
    """Whether the agent's text says goodbye."""
    return bool(_FAREWELL.search(plain(text)))


def offers_more(text: str) -> bool:
    """Whether the agent's text asks for further wishes, as one does at the end."""
    return any(_ANYTHING_ELSE.search(part) for part in _parts(text))


def announces_work(text: str) -> bool:
    """Whether the agent's text ends with work that it is about to do."""
    parts = _parts(text)
    return bool(
        parts and any(_WORKING.search(part) and "?" not in part for part in parts[-2:]) and not offers_more(text)
    )


def announces_transfer(text: str) -> bool:
    """Whether the agent's text says that the user is being transferred; an offer or a refusal of it does not count."""
    return any(_TRANSFER.search(part) and not _NOT_TRANSFER.search(without_quotes(part)) for part in _parts(text))
