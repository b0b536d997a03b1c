"""Clean dialogues of every domain, and faults of the user injected into them.

The scripted user plays the clean dialogues with gold actions and the expert, in tau2's own environments. They contain
few texts, so turns are added: questions of the agent with proper answers, from the given texts. The fault comes last
or in the middle. The seed decides everything.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tau2_lightning.environment import EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment.demonstrations import _at_once, _follow, plan_for
from tau2_lightning.environment.dialogue import Dialogue
from tau2_lightning.environment.tasks import get_task, scenario
from tau2_lightning.environment.tau2_api import UserSimulator
from tau2_lightning.environment.user_faults import KINDS, Kind, Scenario
from tests.environment.user_fault_cases.texts import Question, Texts

DOMAINS = ("telecom", "retail", "airline", "mock")
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A dialogue with its scenario. ``kind`` and ``turn`` are of the injected fault; None and -1 mean a clean one."""

    scenario: Scenario
    messages: tuple[Message, ...]
    kind: Kind | None = None
    turn: int = -1


def played_dialogues(count: int, seed: int) -> list[Case]:
    """``count`` dialogues of the scripted user with gold agents, domains in turn; some agents leave out actions."""
    rng = random.Random(seed)
    tasks = {domain: list(load_tasks(domain, "base")) for domain in DOMAINS}
    made: list[Case] = []
    while len(made) < count:
        domain = DOMAINS[len(made) % len(DOMAINS)]
        ref = rng.choice(tasks[domain])
        settings = EnvironmentSettings(domain, user=UserSettings("scripted"))
        made.append(Case(_scenario(ref), _gold_messages(settings, ref, rng, rng.choice((0.0, 0.0, 0.3)))))
    return made


def _gold_messages(settings: EnvironmentSettings, ref: TaskRef, rng: random.Random, skip: float) -> tuple[Message, ...]:
    """A replay of the gold actions, of which each is left out with probability ``skip``. The user only reacts."""
    settings = replace(settings, unjudged=True)
    dialogue, plan = Dialogue(ref, settings, seed=rng.getrandbits(31)), plan_for(ref, settings)
    assert isinstance(plan, list)
    _at_once(_follow(dialogue, (message for skill, message in plan if not (skill and rng.random() < skip))))
    return tuple(dialogue.outcome().simulation["messages"])


def _scenario(ref: TaskRef) -> Scenario:
    tools: list[Any] | None = [] if ref.domain.startswith("telecom") else None
    guidelines = UserSimulator(
        tools=tools, instructions=scenario(ref), llm="none", llm_args={}
    ).global_simulation_guidelines
    return Scenario.of(get_task(ref), guidelines=guidelines, reads_reason=True)


def enriched(case: Case, texts: Texts, rng: random.Random) -> Case:
    """The clean dialogue with added turns and another end, from ``texts``."""
    talk = _Talk(case, texts, rng)
    for question in talk.questions(rng.randint(1, 4)):
        talk.add(rng.choice(question.wordings), talk.fill(rng.choice(question.answers)))
    talk.end()
    return Case(case.scenario, tuple(talk.messages))


def inject(case: Case, kind: Kind, texts: Texts, rng: random.Random) -> Case:
    """The dialogue with added turns from ``texts``, one of which has a fault of ``kind``."""
    talk = _Talk(case, texts, rng)
    asked = talk.questions(rng.randint(1, 3))
    for question in asked:
        talk.add(rng.choice(question.wordings), talk.fill(rng.choice(question.answers)))
    _INJECTIONS[kind](talk)
    return Case(case.scenario, tuple(talk.messages), kind, talk.turn)


def cases(count: int, texts: Texts, seed: int) -> Iterator[Case]:
    """``count`` dialogues with one fault each, kinds in turn."""
    rng = random.Random(seed)
    clean = played_dialogues(max(len(DOMAINS) * 12, count // 4), seed)
    for number in range(count):
        yield inject(rng.choice(clean), KINDS[number % len(KINDS)], texts, rng)


class _Talk:
    """A played dialogue without its end, to which turns are added."""

    def __init__(self, case: Case, texts: Texts, rng: random.Random) -> None:
        self.case, self.texts, self.rng, self.turn = case, texts, rng, -1
        messages = list(case.messages)
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant" and m.get("content"))
        first = next(i for i, m in enumerate(messages) if m["role"] == "user") + 1
        # Cut between the opening and the agent's last text, and never between a call and its result.
        places = [
            i for i in range(first, max(first, last) + 1) if i >= len(messages) or messages[i]["role"] == "assistant"
        ]
        self.messages: list[Message] = messages[: rng.choice(places) if places else first]
        self._numbers = [rng.choice("123456789") + "".join(rng.choices("0123456789", k=9)) for _ in range(8)]

    def questions(self, count: int) -> list[Question]:
        return self.rng.sample(self.texts.questions, min(count, len(self.texts.questions)))

    def agent(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text, "tool_calls": None})

    def user(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text, "tool_calls": None})

    def add(self, asked: str, said: str) -> None:
        self.agent(asked)
        self.user(said)

    def end(self) -> None:
        if self.rng.random() < 0.15:
            self.add(self.rng.choice(self.texts.transfers), self.rng.choice(("###TRANSFER###", "Okay. ###TRANSFER###")))
        else:
            self.add(self.rng.choice(self.texts.closings), self.rng.choice(self.texts.thanks))

    def fault(self, asked: str, said: str) -> None:
        self.add(asked, said)
        self.turn = len(self.messages) - 1

    def ask(self) -> str:
        return self.rng.choice(self.rng.choice(self.texts.questions).wordings)

    def fill(self, text: str) -> str:
        """``text`` with its fields filled, from the task or with invented values."""
        rng = self.rng
        instructions = self.case.scenario.instructions
        name = re.search(r"\b(?:[Yy]ou are|[Yy]ou(?:r)? name is) ([A-Z][a-z]+ [A-Z][a-z]+)", instructions)
        ids = re.findall(
            r"#W\d{7}|\b(?=[A-Z0-9]*\d)[A-Z0-9]{6}\b|\b\d{3}-\d{3}-\d{4}\b|\b[a-z]+_[a-z]+_\d+\b|\S+@\S+\w",
            instructions,
        )
        digits = rng.choice(self._numbers)
        known = {
            "name": name.group(1) if name else "the one on my account",
            "id": _respelled(rng.choice(ids), rng) if ids else "the one on my account",
            "first": rng.choice(("maria", "tom", "li", "omar", "ana")),
            "last": rng.choice(("bauer", "nowak", "santos", "okafor")),
            "code": "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=3))
            + digits[:1]
            + "".join(rng.choices("KLMNPQR", k=2)),
            "sentence": rng.choice(_sentences(self.case.scenario)),
            **{f"d{k}": digits[:k] for k in (3, 4, 5, 7, 10)},
        }
        return text.format_map(known)


def _sentences(scenario: Scenario) -> list[str]:
    """Sentences of the instructions and guidelines that tell the user what it is or does."""
    text = f"{scenario.instructions}\n{scenario.guidelines}"
    labels = r"(?m)^\t*(?:Persona|Instructions|Domain|Reason for call|Known info|Unknown info|Task instructions):.*$"
    parts = re.split(r"(?<=[.!])\s+|\n", re.sub(labels, "", text))
    parts = [re.sub(r"^[\s\-#*]+", "", part).strip() for part in parts]
    told = [
        part for part in parts if len(part.split()) >= 7 and re.search(r"\b[Yy]ou(?:r|'re|'ve)?\b|\b[Aa]gent\b", part)
    ]
    return [part for part in told if "'" not in part.replace("'t", "").replace("'re", "").replace("'ve", "")] or told


def _respelled(id_: str, rng: random.Random) -> str:
    forms: tuple[Callable[[str], str], ...] = (
        str,
        str.lower,
        str.upper,
        lambda text: text.lstrip("#"),
        lambda text: text.replace("_", " "),
        lambda text: text.replace("-", " "),
        lambda text: text.replace("-", ""),
        lambda text: "#" + text.lstrip("#"),
        lambda text: f'"{text}"',
    )
    return rng.choice(forms)(id_)


def _speak_as_agent(talk: _Talk) -> None:
    talk.fault(talk.ask(), talk.fill(talk.rng.choice(talk.texts.as_agent)))


def _leak(talk: _Talk) -> None:
    texts = talk.texts.leaks if talk.rng.random() < 0.6 else talk.texts.recitals
    talk.fault(talk.ask(), talk.fill(talk.rng.choice(texts)))


def _stop(talk: _Talk) -> None:
    if talk.rng.random() < 0.2:
        opening = next(i for i, m in enumerate(talk.case.messages) if m["role"] == "user")
        if opening < talk.case.scenario.history or opening > 1:
            opening = -1
        if opening >= 0:
            said = str(talk.case.messages[opening]["content"])
            talk.messages = [
                *talk.case.messages[:opening],
                {"role": "user", "content": f"{said} ###STOP###", "tool_calls": None},
            ]
            talk.turn = opening
            return
    asked = talk.rng.choice(talk.texts.work) if talk.rng.random() < 0.3 else talk.ask()
    talk.fault(asked, talk.fill(talk.rng.choice(talk.texts.stops)))


def _transfer(talk: _Talk) -> None:
    asked = talk.rng.choice(talk.texts.offers) if talk.rng.random() < 0.4 else talk.ask()
    talk.messages = [m for m in talk.messages if not any("transfer" in c["name"] for c in m.get("tool_calls") or ())]
    talk.fault(asked, talk.fill(talk.rng.choice(talk.texts.transfer_words)))


def _invent(talk: _Talk) -> None:
    talk.fault(talk.ask(), talk.fill(talk.rng.choice(talk.texts.inventions)))


def _ignore(talk: _Talk) -> None:
    question = talk.rng.choice(talk.texts.questions)
    first, again = talk.rng.sample(question.wordings, 2)
    one, two = talk.rng.sample(talk.texts.evasions, 2)
    talk.add(first, one)
    talk.fault(again, two)


def _say_nothing(talk: _Talk) -> None:
    talk.fault(talk.ask(), talk.rng.choice(talk.texts.empty))


def _repeat(talk: _Talk) -> None:
    said = [
        str(m["content"]) for m in talk.messages if m["role"] == "user" and len(str(m["content"] or "").split()) >= 6
    ]
    heard = [str(m["content"]) for m in talk.messages if m["role"] == "assistant" and m.get("content")]
    asked = next((text for text in (talk.ask() for _ in range(50)) if text not in heard), talk.texts.work[0])
    again = talk.rng.choice(said[:1] if talk.rng.random() < 0.6 else said[-1:])
    forms: tuple[Callable[[str], str], ...] = (str, str.strip, lambda text: text.rstrip(".!") + "!", str.lower)
    # With one more word, a short text would no longer count as repeated.
    prefix = talk.rng.choice(talk.texts.prefixes) if len(again.split()) >= 20 else ""
    talk.fault(asked, prefix + talk.rng.choice(forms)(again))


_INJECTIONS: dict[Kind, Callable[[_Talk], None]] = {
    "speaks_as_agent": _speak_as_agent,
    "leaks_instructions": _leak,
    "stops_early": _stop,
    "transfers_early": _transfer,
    "invents_ids": _invent,
    "ignores_question": _ignore,
    "empty_turn": _say_nothing,
    "repeats_itself": _repeat,
}


def verdict(found: Sequence[Any], case: Case) -> bool:
    """Whether the rules found the injected fault, of the right kind and in the right turn."""
    return any(fault.kind == case.kind and fault.turn == case.turn for fault in found)
