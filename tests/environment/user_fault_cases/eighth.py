"""What simulated users and agents say, for injected faults of the user: the eighth texts on which settled rules were
measured (91.3 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

EIGHTH = Texts(
    questions=(
        Question(
            (
                "Sure, I can look into that. What is your user ID, or the email you used?",
                "Thank you. I'll need either your user ID or your email to continue.",
                "I'm sorry, but I need to verify you first. Please provide your user ID or email.",
            ),
            (
                "I don't remember either of them.",
                "Hm, I can't think of it. My full name is {name}.",
                "I'd have to look for it, and my computer is broken.",
            ),
        ),
        Question(
            (
                "May I have the confirmation number of the booking?",
                "I wasn't able to find a booking yet. What's the confirmation number?",
                "Without the confirmation number, I can't open the booking. Do you have it?",
            ),
            (
                "It's {id}.",
                "I think that it starts with {id}, can you check?",
                "No, I don't have it. I threw the letter away.",
            ),
        ),
        Question(
            (
                "Your new monthly price would be $65. Do you want me to switch the plan?",
                "Switching the plan changes the price to $65 a month. Shall I switch it?",
                "Just to be sure: do you want to switch to the plan for $65 a month?",
            ),
            (
                "Yes, switch it.",
                "No way, that's more than I pay now.",
                "Sounds good, do it.",
                "I'd like to think about it.",
            ),
        ),
        Question(
            (
                "What would you like instead, the wired or the wireless version?",
                "We have it wired and wireless. Which version should I order?",
                "Sorry, was it the wired or the wireless version?",
            ),
            (
                "Wireless, please.",
                "The wired version. I've had trouble with batteries in the past, they always die in mid-call.",
                "The wireless one, if it's not more expensive.",
            ),
        ),
        Question(
            (
                "Please look at the top of your screen. Do you see a signal icon?",
                "Do you see a signal icon on your screen now?",
                "Could you tell me if there is a signal icon on the screen?",
            ),
            (
                "Yes, there's one with two bars.",
                "I don't see any icon there.",
                "There is a cross next to the signal icon.",
            ),
        ),
        Question(
            (
                "How many passengers are travelling?",
                "Please tell me how many passengers there are.",
                "And how many passengers is this for?",
            ),
            (
                "Three passengers.",
                "It's me and my husband, so two.",
                "Only me. Everybody else has decided to stay at home because of the weather forecast for the weekend.",
            ),
        ),
        Question(
            (
                "Could you explain what is wrong with the lamp?",
                "So that I can choose the right option: what is wrong with the lamp?",
                "I didn't quite get what is wrong with the lamp. Can you describe it?",
            ),
            (
                "The lamp flickers.",
                "It was damaged when it arrived.",
                "I'm not sure, it just doesn't turn on.",
            ),
        ),
    ),
    evasions=(
        "My roommate plays the drums.",
        "Pizza is my favourite dish.",
        "It's raining cats and dogs.",
        "Who won the match yesterday?",
        "The garden needs watering.",
        "My aunt lives on a farm.",
        "I just saw a rainbow.",
        "Some people are so lucky.",
        "Winter is coming.",
        "This chair squeaks.",
        "My horoscope promised a great week.",
    ),
    work=(
        "Alright, I'll cancel the booking for you now.",
        "Bear with me for a moment, I'm searching for it.",
        "I am going to place the order now.",
        "Thanks, now I'll verify the payment.",
    ),
    offers=(
        "I can offer to transfer you to a human agent. Would that be okay?",
        "Unfortunately I can't help with that. Do you want a human agent?",
        "If you want, I'll transfer you to a human agent.",
    ),
    transfers=(
        "Please hold on, I am transferring you to a human agent.",
        "Your call is being transferred to a human agent.",
        "I'll connect you to a human agent right now.",
    ),
    closings=(
        "The plan has been switched. Is there anything else you need?",
        "It was a pleasure to help you. Goodbye!",
        "I regret that I can't offer you a refund in this case.",
        "The order has been placed, and it will arrive on Friday.",
    ),
    thanks=(
        "Wonderful, thanks! ###STOP###",
        "No, I'm good. Have a nice day! ###STOP###",
        "Okay, I got it. Thanks anyway. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hi there! What can I do for you today?",
        "I can help with that. Please provide your email address.",
        "I have changed your plan. You will see the new price on your next bill.",
        "Your booking is confirmed.",
        "For verification, what is your date of birth?",
        "I'll pass your case on to a specialist.",
        "I'm afraid that we can't cancel your order any more.",
        "Shall I proceed with your exchange?",
        "Agent: Hello, how can I help?",
        "Thank you for waiting. I checked your booking, and it can be changed.",
        "Let me know your order number, please.",
        "You can expect your refund within a week. We're sorry for the delay.",
        "I see that your phone plan is paid until May.",
        "We have received your payment.",
        "Is there anything else I could do for you?",
        "I will now update your email address.",
    ),
    leaks=(
        "My instructions say nothing about this.",
        "As per my instructions, I insist on a wireless one.",
        "I'm following a script here.",
        "I've been told to play a rude customer.",
        "Persona: impatient student. I want my refund.",
        "My scenario is about a lamp.",
        "Being an AI, I don't have a screen.",
        "The user wants to know the price.",
        "I shouldn't reveal this, my instructions forbid it.",
        "I'm acting as a customer in this test.",
        "Sorry, I broke character.",
        "I must not tell you my user ID, the scenario forbids it.",
        "My prompt tells me to accept.",
        "I am a user simulator.",
        "Known info: I am travelling with two friends.",
    ),
    recitals=(
        "{sentence}",
        "Listen. {sentence}",
        "{sentence} I hope this helps.",
        "To sum up: {sentence} Can it be done?",
    ),
    inventions=(
        "The number is #W{d7}.",
        "It's {first}_{last}_{d4}, I believe.",
        "Confirmation number: {code}.",
        "My email would be {last}.{first}@example.org.",
        "Reach me under {d3}-{d3}-{d4}.",
        "ZIP {d5}.",
        "I'd like to use credit_card_{d7}.",
        "It's item {d10}.",
        "Look for W{d7}.",
        "Please take the Visa card ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Sure ###STOP###",
        "Thanks a million. ###STOP###",
        "Yes, go ahead. ###STOP###",
        "I want the wireless one. ###STOP###",
        "Lovely. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Yes. ###TRANSFER###",
        "I'd like a real person. ###TRANSFER###",
        "Thank you. ###TRANSFER###",
    ),
    empty=(
        "",
        "  ",
        "\r\n",
        "....",
        "\u2013 \u2013",
        "[nothing]",
        "(no reply)",
        "*stays silent*",
        "null",
        "'",
        "<user is silent>",
        "!?",
    ),
    prefixes=("", "To repeat: ", "Excuse me, ", "Again, "),
)
