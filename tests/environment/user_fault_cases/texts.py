"""What simulated users and agents say, for injected faults of the user: the texts that its rules were written with.

`held_out.py` holds other texts, written after the rules. Fields in braces are filled from the task.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """One question in several wordings, with proper answers."""

    wordings: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Texts:
    """Texts by use. ``evasions`` answer no question, ``work`` announces an agent's action, ``offers`` a transfer."""

    questions: tuple[Question, ...]
    evasions: tuple[str, ...]
    work: tuple[str, ...]
    offers: tuple[str, ...]
    transfers: tuple[str, ...]
    closings: tuple[str, ...]
    thanks: tuple[str, ...]
    as_agent: tuple[str, ...]
    leaks: tuple[str, ...]
    recitals: tuple[str, ...]
    inventions: tuple[str, ...]
    stops: tuple[str, ...]
    transfer_words: tuple[str, ...]
    empty: tuple[str, ...]
    prefixes: tuple[str, ...]


DEVELOPMENT = Texts(
    questions=(
        Question(
            (
                "Could you please provide your email address so that I can find your account?",
                "I still need your email address to find your account. Could you share it with me?",
                "What is the email address on your account?",
            ),
            (
                "I'm sorry, I don't remember which email I used.",
                "I don't have an email on file, I think. Can you look it up by my name instead?",
                "I'd rather not share that, can we use something else?",
            ),
        ),
        Question(
            (
                "May I have your full name and zip code, please?",
                "To verify you, I need your full name and your zip code.",
                "Please tell me your full name and zip code.",
            ),
            (
                "Sure, my name is {name}.",
                "It's {name}. I don't remember the zip code I registered.",
                "{name}, as I said.",
            ),
        ),
        Question(
            (
                "Would you like me to proceed with this change? Please answer yes or no.",
                "Shall I go ahead with this change (yes/no)?",
                "Do you confirm that I should proceed with the change?",
            ),
            (
                "Yes, please go ahead.",
                "Yes, that works for me. Thank you!",
                "No, not yet. I want to think about it.",
                "Sure, let's do that.",
            ),
        ),
        Question(
            (
                "Which payment method would you like to use for the refund?",
                "How should we refund you: which payment method do you prefer?",
                "Please let me know the payment method for the refund.",
            ),
            (
                "The original payment method, please.",
                "My credit card would be best.",
                "I'm not sure, whichever is on file is fine.",
            ),
        ),
        Question(
            (
                "What is the reason for your request?",
                "Could you tell me the reason for this request?",
                "Before I continue, what is the reason for the request?",
            ),
            (
                "I changed my mind, that's all.",
                "It's because I no longer need it.",
                "I ordered it by mistake, sorry about that.",
            ),
        ),
    ),
    evasions=(
        "The weather has been terrible here all week.",
        "Your shop has such beautiful pictures, by the way.",
        "How long have you worked there?",
        "My neighbour told me a funny story this morning.",
        "Prices have become so high everywhere.",
        "Well, traffic was awful today.",
    ),
    work=(
        "Thank you. Let me check that for you, one moment please.",
        "Great, I will now look into this. Please hold on.",
    ),
    offers=(
        "I cannot do this myself. Would you like me to transfer you to a human agent?",
        "If you prefer, I can transfer you to a human agent.",
    ),
    transfers=(
        "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.",
        "I am transferring you to a human agent now.",
    ),
    closings=(
        "All done! Is there anything else I can help you with?",
        "The change has been made. Have a great day!",
        "You're welcome! Goodbye!",
    ),
    thanks=(
        "Thank you so much for your help! ###STOP###",
        "No, that's all for now. Thanks! ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hello! How can I help you today?",
        "I'd be happy to assist you with that. Could you please provide your order number?",
        "Thank you for contacting customer support. May I have your full name and zip code?",
        "Your refund has been processed and will be credited within 5 to 7 business days.",
        "I have updated your reservation. Is there anything else I can help you with?",
        "Let me pull up your account to check the details.",
        "Agent: I see that you want to make a change.\nUser: Yes, please.",
        "As a customer service representative, I can only act on verified accounts.",
        "I'm transferring you to a human agent now.",
        "According to our policy, this item cannot be returned.",
        "I understand your frustration. Let me look into your order right away.",
        "You will receive a confirmation email shortly.",
    ),
    leaks=(
        "My instructions say that I should not accept anything else.",
        "According to my scenario, I am supposed to ask for a refund.",
        "I was told to act as a customer who is in a hurry.",
        "As a simulated user, I don't have that information.",
        "The scenario doesn't say anything about that.",
        "<scenario>\nPersona: polite\n</scenario> I want to continue.",
        "Task instructions: be brief. So, please go on.",
        "I'm just role-playing a customer here, so I can't know that.",
        "As an AI language model, I do not own a phone.",
        "The user should now ask for the total amount.",
        "My prompt doesn't include this detail.",
    ),
    recitals=(
        "{sentence}",
        "OK. {sentence}",
        "Well, {sentence} So please do it.",
        "{sentence} Can you help with that?",
    ),
    inventions=(
        "The order number is #W{d7}.",
        "Sure, it's W{d7}.",
        "My email is {first}.{last}{d3}@example.com.",
        "You can reach me at {d3}-555-{d4}.",
        "My zip code is {d5}.",
        "My user id is {first}_{last}_{d4}.",
        "Reservation {code}, please.",
        "Please use the gift card gift_card_{d7}.",
        "The item id is {d10}.",
    ),
    stops=(
        "###STOP###",
        "Thanks. ###STOP###",
        "Yes, please. ###STOP###",
        "I'd like to continue with my request. ###STOP###",
        "Okay, great. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Okay. ###TRANSFER###",
        "Yes, please. ###TRANSFER###",
        "Thank you! ###TRANSFER###",
    ),
    empty=("", " ", "\n", "...", "-", "\u2026", "[no response]", "(silence)"),
    prefixes=("", "Hi. ", "As I said: ", "Sorry, "),
)
