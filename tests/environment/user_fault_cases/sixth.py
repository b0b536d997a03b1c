"""What simulated users and agents say, for injected faults of the user: the sixth texts on which settled rules were
measured (90.3 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

SIXTH = Texts(
    questions=(
        Question(
            (
                "Let's begin with your name and postal code, shall we?",
                "I can't continue before you tell me your name and your postal code.",
                "Once more: who am I talking to, and what is the postal code?",
            ),
            (
                "{name} is my name.",
                "You're talking to {name}. I can't recall the postal code, I moved in March.",
                "My name is {name}, I'd prefer to keep the rest to myself.",
            ),
        ),
        Question(
            (
                "Which phone number has the problem?",
                "You seem to have two lines. What is the phone number that has the problem?",
                "Could you tell me the phone number in question?",
            ),
            (
                "I don't know it by heart. How can I find my phone number?",
                "No idea. It's the line that my son uses.",
                "I can't see the phone number anywhere.",
            ),
        ),
        Question(
            (
                "That will be $89 in total. Okay to go on with the booking?",
                "Do I have your go-ahead for the booking?",
                "I'm waiting for your confirmation of the booking. Is $89 alright?",
            ),
            (
                "Yes, book it.",
                "You have my go-ahead.",
                "Hmm, $89 is more than I expected. Are there cheaper ones?",
                "No, I don't want to spend so much.",
            ),
        ),
        Question(
            (
                "The backpack comes in green, grey and black. Which colour would you like?",
                "And the colour of the backpack? Green, grey and black are available.",
                "I still don't know in which colour you want the backpack.",
            ),
            (
                "Grey would be nice.",
                "Black, please.",
                "Green! My old one was green as well, and I loved it so much that I wore it until it fell apart.",
            ),
        ),
        Question(
            (
                "What does the status bar show right now?",
                "Could you look at the status bar and describe what it shows?",
                "I need to know what you see in the status bar.",
            ),
            (
                "There's an airplane in the status bar.",
                "It shows no bars at all.",
                "Which bar do you mean? The one at the top?",
            ),
        ),
        Question(
            (
                "Is this about the flight to Boston or the one to Denver?",
                "Boston or Denver: which flight do you mean?",
                "Sorry, I have to ask again whether you mean the flight to Boston or the one to Denver.",
            ),
            (
                "Denver.",
                "I mean the flight to Boston, the one in the morning.",
                "The Denver one. I booked it for my wife, who wants to see her parents before the winter starts there.",
            ),
        ),
        Question(
            (
                "Did anything happen that made you want a refund?",
                "What is wrong with the item? I have to justify the refund.",
                "Please explain why you want the refund.",
            ),
            (
                "The item arrived with a scratch.",
                "It's too heavy for me, I want to get a lighter one instead.",
                "Nothing is wrong with it, I changed my mind.",
            ),
        ),
    ),
    evasions=(
        "The bakery around the corner closes at six.",
        "My cousin has a new haircut.",
        "It's so windy that my hat flew away.",
        "Elephants never forget.",
        "Have you read any good books lately?",
        "Grandma's soup is the best.",
        "We are painting the kitchen walls.",
        "The kids are jumping on the sofa again.",
        "You sound like my old teacher.",
        "I dreamt of a lighthouse last night.",
        "The moon looks huge this evening.",
    ),
    work=(
        "Thanks! I'll submit the cancellation right away.",
        "Okay, I'm looking into it.",
        "Just a second, I have to open the file first.",
        "Let me add the bags to the booking.",
    ),
    offers=(
        "I'm not authorized to do that, but a human agent might be. Transfer you?",
        "Would you prefer to talk to a human agent?",
        "I could escalate this to a human agent, if you wish.",
    ),
    transfers=(
        "You'll be transferred to a human agent now.",
        "Transferring you to a human agent...",
        "I am handing you over to a human agent.",
    ),
    closings=(
        "The return has been requested. Anything else?",
        "Glad to hear that it works again. Have a good evening!",
        "Unfortunately I am not able to make an exception here.",
        "Both flights are booked, and the confirmation is in your mailbox.",
    ),
    thanks=(
        "You've been very helpful, thank you! ###STOP###",
        "Nope, we're done. ###STOP###",
        "Then there's nothing to be done. Thanks. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hello, this is customer support. How can I be of service?",
        "I'd be glad to look into that for you. What's your order number?",
        "I've issued a refund of $30 to your card.",
        "Your bags are now part of the reservation.",
        "Please tell me your date of birth so that I can verify you.",
        "I will forward your request to the billing department.",
        "We don't offer refunds for this fare, as stated in our policy.",
        "Do you want me to cancel your reservation?",
        "Representative: How may I help?",
        "We apologize for the trouble. Your replacement will be shipped today.",
        "Could I get your reservation number, please?",
        "Happy to assist! I'll check your plan.",
        "Thank you for confirming. I'll now process your return.",
        "Your line is suspended because of an unpaid bill.",
        "I have located your reservation.",
        "What else can I help you with?",
    ),
    leaks=(
        "It says in my instructions that I want the cheapest one.",
        "I wasn't given a phone number in my scenario.",
        "I was instructed not to give my address.",
        "I'm simulating a customer who lost a bag.",
        "Unknown info: the order number.",
        "My guidelines tell me to keep it short.",
        "Since I'm a language model, I have no body.",
        "The user is not happy and asks for a supervisor.",
        "I am supposed to pretend that I am angry.",
        "The scenario didn't mention any colour.",
        "My role is to play a customer.",
        "This is a role play, isn't it?",
        "My task instructions forbid that.",
        "According to my persona, I'm impatient.",
        "I have been prompted to complain.",
    ),
    recitals=(
        "{sentence}",
        "Hello. {sentence}",
        "{sentence} I can't add more.",
        "As follows: {sentence} Is that possible?",
    ),
    inventions=(
        "I think it's #W{d7}.",
        "My username is {first}_{last}_{d4}.",
        "It's reservation {code}.",
        "Send it to {first}_{last}@webmail.com, please.",
        "My cell is {d3}-{d3}-{d4}.",
        "Postal code {d5}.",
        "The certificate is certificate_{d7}.",
        "The product number is {d10}.",
        "Order W{d7}!",
        "Please use the card ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Nice ###STOP###",
        "Thank you kindly. ###STOP###",
        "Yes, please book it. ###STOP###",
        "I expect a solution. ###STOP###",
        "Okay then. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Right. ###TRANSFER###",
        "Let me talk to somebody else. ###TRANSFER###",
        "Yes, I'd appreciate that. ###TRANSFER###",
    ),
    empty=(
        "",
        " \t ",
        "\n",
        "\u2026",
        "--",
        "[pause]",
        "(silent)",
        "*waits*",
        "nil",
        "' '",
        "<no message>",
        "...?",
    ),
    prefixes=("", "Again: ", "Yes, but ", "Honestly, "),
)
