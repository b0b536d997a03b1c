"""What simulated users and agents say, for injected faults of the user: the ninth texts on which settled rules were
measured (94.5 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

NINTH = Texts(
    questions=(
        Question(
            (
                "Hello! To get started, could you tell me your email address?",
                "I see. What is your email address, please?",
                "That isn't an email address. Could you type your email address again?",
            ),
            (
                "I don't know which one I gave you.",
                "I'd rather use my name: {name}.",
                "I can't find it, sorry.",
            ),
        ),
        Question(
            (
                "What's the order number of the parcel?",
                "Could you read me the order number of the parcel?",
                "I need the order number of the parcel to track it.",
            ),
            (
                "It reads {id}.",
                "The label is torn, so I can't read it.",
                "I think {id} is the one.",
            ),
        ),
        Question(
            (
                "The cancellation fee is $75. Are you okay with the fee?",
                "Please let me know if you accept the cancellation fee.",
                "Do you accept the cancellation fee of $75?",
            ),
            (
                "Yes, I'm okay with it.",
                "I accept the fee.",
                "No, I won't pay a fee.",
                "Can you waive the fee?",
            ),
        ),
        Question(
            (
                "Should the new desk be white or brown?",
                "Which colour do you want for the desk, white or brown?",
                "You haven't told me the colour of the desk yet. White or brown?",
            ),
            (
                "White, please.",
                "Brown.",
                "The brown one, since my floor is brown too and I want all the furniture in the room to match it.",
            ),
        ),
        Question(
            (
                "Can you check if data roaming is enabled on your phone?",
                "Is data roaming enabled on your phone?",
                "I'd like you to check data roaming. Is it enabled?",
            ),
            (
                "Data roaming is enabled.",
                "No, it's disabled.",
                "Where do I find data roaming?",
            ),
        ),
        Question(
            (
                "On which day would you like to travel?",
                "Could you give me the day on which you'd like to travel?",
                "To search for flights, I need to know the day of travel.",
            ),
            (
                "May 24th.",
                "On Friday, if possible.",
                "Any day next week is fine. I have taken two weeks off, so I'm not bound to a certain day this time.",
            ),
        ),
        Question(
            (
                "What is the reason for your return?",
                "Can you tell me why you're returning the desk?",
                "I'd need to know the reason for the return.",
            ),
            (
                "The desk is too large for my room.",
                "I found a cheaper one.",
                "I changed my mind.",
            ),
        ),
    ),
    evasions=(
        "My son scored a goal today.",
        "I prefer tea over coffee.",
        "The trees are losing their leaves.",
        "What's your favourite movie?",
        "Our village has a lovely church.",
        "Cats sleep all day.",
        "I was stuck in traffic for hours.",
        "Yesterday was my birthday.",
        "People talk too much.",
        "There's a spider on my wall.",
        "My back hurts.",
    ),
    work=(
        "Thanks. I'm going to look up the parcel.",
        "One second, please. I am checking your order.",
        "I'll now cancel the reservation.",
        "Great, I will update that for you.",
    ),
    offers=(
        "Would you like to speak to a human agent?",
        "I can connect you with a human agent. Do you want that?",
        "A human agent could look into it. Should I transfer you?",
    ),
    transfers=(
        "I'm going to transfer you to a human agent.",
        "You will be connected to a human agent shortly.",
        "Transferring you to a human agent now. Please wait.",
    ),
    closings=(
        "Your parcel will arrive tomorrow. Is there anything else?",
        "Thank you for your patience. Have a great evening!",
        "I'm sorry, this can't be changed.",
        "I have changed the colour of the desk to white.",
    ),
    thanks=(
        "Thanks, that's great. ###STOP###",
        "No, thank you. ###STOP###",
        "I see. Thanks for checking. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Good afternoon! How can I assist you?",
        "I'd love to help! May I have your order number?",
        "I have cancelled your reservation and refunded the fee.",
        "Your parcel has been shipped.",
        "Please verify your email address.",
        "I will transfer you to our returns team.",
        "I'm sorry, but your reservation can't be changed.",
        "Would you like me to update your address?",
        "Support agent: Thanks for your message.",
        "Thank you for your patience while I looked up your order.",
        "Can you give me your zip code, please?",
        "Your new flight leaves at 8 am. Your ticket will be sent by email.",
        "I can see that your account was created last year.",
        "We will process your return within two days.",
        "Do you need help with anything else?",
        "I've reset your data plan.",
    ),
    leaks=(
        "I can't answer that, my instructions don't say.",
        "My script says that I want a white desk.",
        "According to the scenario, my name is secret.",
        "I've been instructed to ask for a discount.",
        "Reason for call: a lost parcel.",
        "I'm pretending to be a customer, so I don't have one.",
        "I am an AI, so I have no birthday.",
        "The user is satisfied.",
        "I'm not allowed to disclose that yet.",
        "As a simulated customer, I'm fine with anything.",
        "I shouldn't break character.",
        "My guidelines say to wait for you.",
        "The instructions I was given don't mention a fee.",
        "My role in this simulation is the customer.",
        "My system prompt is in English.",
    ),
    recitals=(
        "{sentence}",
        "Okay, {sentence}",
        "{sentence} Thanks in advance.",
        "The situation: {sentence} What now?",
    ),
    inventions=(
        "Order #W{d7}.",
        "I'm {first}_{last}_{d4}.",
        "My reservation is {code}.",
        "You can write to {first}{d3}@home.net.",
        "My number is {d3}-{d3}-{d4}.",
        "It's zip code {d5}.",
        "Take gift_card_{d7}.",
        "The id of the item is {d10}.",
        "W{d7}, I think.",
        "It's a Mastercard ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Alright ###STOP###",
        "Thank you! ###STOP###",
        "Yes, I do. ###STOP###",
        "I want a white desk. ###STOP###",
        "Cool. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Okay! ###TRANSFER###",
        "I'd prefer a human. ###TRANSFER###",
        "Great, thanks. ###TRANSFER###",
    ),
    empty=(
        "",
        "\n ",
        "\t\t",
        "\u2026!",
        "-",
        "[empty]",
        "(nothing)",
        "*no response*",
        "n/a",
        '"""',
        "<no answer>",
        "...!",
    ),
    prefixes=("", "I'll say it again: ", "Hey, ", "Right, "),
)
