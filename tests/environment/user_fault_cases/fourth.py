"""What simulated users and agents say, for injected faults of the user: the fourth texts on which settled rules were
measured (90.8 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

FOURTH = Texts(
    questions=(
        Question(
            (
                "To find your profile I need the phone number or the email that you signed up with.",
                "Which email or phone number did you sign up with?",
                "I still can't see your profile. May I ask for the email that you signed up with?",
            ),
            (
                "I wish I knew. My daughter set all of this up and I cannot remember what she typed.",
                "Neither of them comes to mind at the moment, sorry.",
                "I would rather give you my name, {name}. Is that enough?",
            ),
        ),
        Question(
            (
                "Could you tell me which order this is about?",
                "I see several orders. Please tell me the order number.",
                "Sorry, without the order number I can't tell which one you mean. What is the order number?",
            ),
            (
                "The one with the id {id}.",
                "It should be {id}, if I read my notes correctly.",
                "I can't tell you, the confirmation mail is gone.",
            ),
        ),
        Question(
            (
                "The price difference is $120. May I charge the difference to your card?",
                "Before I change anything: may I charge the difference to your card?",
                "I need your permission. Is it okay to charge the difference to your card?",
            ),
            (
                "You may.",
                "No, that is too much for me.",
                "Fine by me, go on.",
                "Yes, charge it, please.",
            ),
        ),
        Question(
            (
                "Would you prefer a window seat or an aisle seat?",
                "Window or aisle? I have to choose a seat for you.",
                "Which seat shall I choose, window or aisle?",
            ),
            (
                "A window seat, please.",
                "The aisle, because of my knee. I had surgery in spring and it still hurts on long flights.",
                "Aisle if there's one left.",
            ),
        ),
        Question(
            (
                "Can you restart the phone and tell me whether the signal comes back?",
                "Have you restarted the phone yet? Is the signal back?",
                "I would like to know whether the signal is back after a restart.",
            ),
            (
                "I restarted it, and there is still no signal.",
                "Yes, the signal has come back.",
                "Not yet, it takes forever to restart.",
            ),
        ),
        Question(
            (
                "What made you decide to return the jacket?",
                "For my notes: what is the reason for returning the jacket?",
                "I have to fill in a reason. Why do you want to return the jacket?",
            ),
            (
                "The zipper is broken.",
                "It doesn't fit me.",
                "I just don't like the colour, to be honest with you. It looked far brighter in the pictures.",
            ),
        ),
        Question(
            (
                "Which date would you like to fly on instead?",
                "Please give me the new date for the flight.",
                "I can't search for flights without a date. Which date would suit you?",
            ),
            (
                "The 20th of May would be ideal.",
                "May 21, or any date after that.",
                "I'm flexible, whatever date is the cheapest.",
            ),
        ),
    ),
    evasions=(
        "The tomatoes in our garden are finally ripe.",
        "I have two cats and a parrot.",
        "My uncle drives a truck.",
        "Elections are coming up, aren't they?",
        "It rained during the whole match.",
        "Have you ever been to Lisbon?",
        "Someone is mowing the lawn outside.",
        "Coffee keeps me awake.",
        "The new museum downtown is lovely.",
        "Time flies when you get older.",
        "This reminds me of a film with Cary Grant.",
    ),
    work=(
        "Perfect, I'll go ahead and make the change now.",
        "Please give me a second while I open your reservation.",
        "I'm now checking which flights are available.",
        "All right, let me submit this for you.",
    ),
    offers=(
        "That is beyond what I can do. Do you want to be transferred to a human agent?",
        "I could connect you with a human agent if you'd like.",
        "A human agent may be able to help. Should I transfer you?",
    ),
    transfers=(
        "I'm connecting you to a human agent. Please stay on the line.",
        "You have been transferred to a human agent.",
        "I'll transfer you now. A human agent will take over.",
    ),
    closings=(
        "Your seat has been changed. Can I do anything else for you?",
        "Great, everything works again. Have a nice weekend!",
        "I'm afraid this reservation can't be cancelled.",
        "The exchange has gone through, and you'll get an email about it.",
    ),
    thanks=(
        "Perfect, thanks a lot! ###STOP###",
        "No, nothing else. Have a good one! ###STOP###",
        "That's a pity, but thank you. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Welcome to our support chat! How may I assist you?",
        "Sure thing! Can you share your order number with me so that I can look into this?",
        "I've gone ahead and cancelled your reservation.",
        "Your exchange request is now complete.",
        "For security reasons, please verify your date of birth.",
        "I will escalate your case to our technical department.",
        "Our records show that your plan has 5 GB left.",
        "Shall I book this flight for you?",
        "Support: Sure, I can do that.",
        "We're sorry for the inconvenience. Your refund will be issued within three days.",
        "I'm here to help! What is your user ID?",
        "As your support agent, I recommend a restart.",
        "Thanks for your patience. I've found your account.",
        "Let me check the status of your order.",
        "Please hold while I transfer you.",
        "If there's anything else you need, I'm happy to help!",
    ),
    leaks=(
        "My instructions tell me to insist on a refund.",
        "There is nothing about this in my scenario.",
        "I have been told to act as an angry customer.",
        "I'm only pretending to be a customer.",
        "Persona: a busy lawyer.",
        "According to the instructions I was given, I should stop here.",
        "As a language model I have no phone to restart.",
        "The user wants to change the flight.",
        "I'm not allowed to reveal my user id yet.",
        "The script says that I accept the second offer.",
        "My persona is in a hurry.",
        "This isn't specified in the task I was given.",
        "I am an AI playing a customer.",
        "I must not break character.",
        "The system prompt asks me to be short.",
    ),
    recitals=(
        "{sentence}",
        "Right. {sentence}",
        "{sentence} That is all I know.",
        "Here is the thing: {sentence} What can you do?",
    ),
    inventions=(
        "Sure, the order is #W{d7}.",
        "You'll find me under {first}_{last}_{d4}.",
        "My confirmation number is {code}.",
        "{first}.{last}@inbox.org is my email.",
        "Please call me back at ({d3}) {d3}-{d4}.",
        "The zip is {d5}.",
        "Use gift_card_{d7} for that.",
        "Item {d10}, please.",
        "It's for order W{d7}, the blue one.",
        "My Mastercard ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Sounds good ###STOP###",
        "Thanks for everything. ###STOP###",
        "Yes. ###STOP###",
        "I want my money back. ###STOP###",
        "Fine with me. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Sure. ###TRANSFER###",
        "Get me a human. ###TRANSFER###",
        "Okay, thank you. ###TRANSFER###",
    ),
    empty=(
        "",
        "   ",
        "\t",
        ".. ..",
        "\u2014",
        "[no answer]",
        "(waits)",
        "*nods*",
        "none",
        "''",
        "<no reply>",
        "?",
    ),
    prefixes=("", "Once more: ", "Well, ", "Look, "),
)
