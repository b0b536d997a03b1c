"""What simulated users and agents say, for injected faults of the user: the fifth texts on which settled rules were
measured (94.0 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

FIFTH = Texts(
    questions=(
        Question(
            (
                "Hi there! What email address is linked to your account?",
                "Sorry, I didn't catch that. I need the email address linked to your account.",
                "Would you please type the email address linked to your account?",
            ),
            (
                "I'm not certain which one that is, I own several.",
                "I lost access to that mailbox and can't recall the address.",
                "Is there another way? I could tell you my name, {name}.",
            ),
        ),
        Question(
            (
                "Which reservation do you want to change? A confirmation code would help.",
                "I'd still need the confirmation code.",
                "Could you look up the confirmation code and share it with me?",
            ),
            (
                "The code should be {id}.",
                "I don't have my papers with me, so I can't say.",
                "{id}, and sorry for the delay.",
            ),
        ),
        Question(
            (
                "A new SIM card costs $5. Do you accept this charge?",
                "There is a charge for the SIM card. Do you accept it?",
                "I must have your consent to the charge. Do you accept it, yes or no?",
            ),
            (
                "I accept.",
                "Five dollars are okay for me.",
                "No. It isn't my fault that the old one broke.",
                "Yes, I do.",
            ),
        ),
        Question(
            (
                "Do you want to exchange the shoes or return them?",
                "Exchange or return: what shall I do with the shoes?",
                "I'm not sure what you want for the shoes. An exchange or a return?",
            ),
            (
                "An exchange, please.",
                "I'd like my money back, so a return.",
                "Return them. I have already bought another pair elsewhere, which fits my feet far better than these.",
            ),
        ),
        Question(
            (
                "Please check whether airplane mode is on.",
                "What about airplane mode? Is it on or off?",
                "Tell me whether airplane mode is on, please.",
            ),
            (
                "It's off.",
                "Airplane mode was on. I switched it off.",
                "How do I find airplane mode?",
            ),
        ),
        Question(
            (
                "How many bags will you bring?",
                "I need the number of bags before I can book. How many will you bring?",
                "Could you tell me how many bags you'll bring along?",
            ),
            (
                "Two bags.",
                "Only one, a small one.",
                "None at all. I travel light these days because my back hurts whenever I lift anything heavy.",
            ),
        ),
        Question(
            (
                "Why would you like to cancel this order?",
                "May I know the reason for the cancellation?",
                "I'm required to note a reason for the cancellation. What should I put down?",
            ),
            (
                "I ordered it by mistake.",
                "I no longer need it.",
                "Let's say that I changed my mind. My brother gave me the same thing for my birthday yesterday.",
            ),
        ),
    ),
    evasions=(
        "My sister plays the violin.",
        "Traffic on the bridge is terrible today.",
        "Bananas are rich in potassium.",
        "I went swimming this morning.",
        "Do you like jazz?",
        "The neighbours are having a party.",
        "Autumn is my favourite season.",
        "What a lovely voice you have.",
        "My dog barks at every squirrel.",
        "They say it may snow tonight.",
        "I am watching a cooking show.",
    ),
    work=(
        "Understood. I'll apply the credit to your bill.",
        "Give me a minute to read your file.",
        "Let me send the payment request first.",
        "I'm going to reset your data plan now.",
    ),
    offers=(
        "Shall I put you in touch with a human agent?",
        "A transfer to a human agent is the only option left. Is that okay?",
        "If this doesn't help, I can transfer you to a human agent.",
    ),
    transfers=(
        "I am transferring you to a human agent who will take care of this.",
        "One moment, you are being connected to a human agent.",
        "I've transferred your case to a human agent.",
    ),
    closings=(
        "The bill has been paid. Do you need anything else?",
        "That's everything. Thanks for calling, and take care!",
        "I'm sorry, but our policy doesn't allow this.",
        "Your bags have been added to the reservation.",
    ),
    thanks=(
        "Awesome, thank you! ###STOP###",
        "That's all I wanted. Bye! ###STOP###",
        "Too bad. Thanks for trying. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Good morning, you've reached customer support. What can I do for you today?",
        "Of course! Please provide me with your confirmation code and I will look it up.",
        "I've added two bags to your reservation.",
        "Your payment has gone through and your line is active again.",
        "Could you verify your identity by telling me your zip code?",
        "I am going to connect you with one of our specialists.",
        "Our policy does not allow refunds for basic economy tickets.",
        "Would you like me to proceed with the exchange of your shoes?",
        "Customer Service: Please wait.",
        "I'm sorry to hear about your trouble. I'll refund your order at once.",
        "May I ask for your full name, please?",
        "I can assist you with this return.",
        "Thank you for providing your details. I can see your order now.",
        "I'd like to inform you that your flight has been cancelled.",
        "Allow me to check your account first.",
        "Is there anything else that I can assist you with?",
    ),
    leaks=(
        "That's outside of my instructions.",
        "My scenario only says that I want a refund.",
        "I am instructed to decline any other offer.",
        "I'm playing the role of a student.",
        "Reason for call: my phone does not work.",
        "The prompt I received doesn't name a date.",
        "As an AI, I can't switch off airplane mode.",
        "The user accepts the offer.",
        "I'm supposed to act like I don't know the policy.",
        "The scenario ends here.",
        "My persona wouldn't agree to that.",
        "I have to stay in character.",
        "In my role as the simulated customer, I say no.",
        "I should not disclose my email unless you ask for it, according to my guidelines.",
        "Based on the scenario, I'd choose the exchange.",
    ),
    recitals=(
        "{sentence}",
        "Sure. {sentence}",
        "{sentence} Okay?",
        "Let me put it this way: {sentence} I hope that's clear.",
    ),
    inventions=(
        "That would be order #W{d7}.",
        "Try {first}_{last}_{d4}.",
        "The booking code is {code}, I think.",
        "Write to {last}{d3}@post.net.",
        "You can call {d3}-{d3}-{d4}.",
        "I live in {d5}.",
        "I paid with paypal_{d7}.",
        "Product {d10} is the one.",
        "W{d7} and nothing else.",
        "It's the card ending with {d4}.",
    ),
    stops=(
        "###STOP###",
        "Great ###STOP###",
        "Many thanks. ###STOP###",
        "Yes, I'd like that. ###STOP###",
        "I need my phone to work. ###STOP###",
        "Very well. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "All right. ###TRANSFER###",
        "I'd like to speak with a manager. ###TRANSFER###",
        "Okay, do that. ###TRANSFER###",
    ),
    empty=(
        "",
        "  \n",
        "\n\n\n",
        "\u2026\u2026",
        "---",
        "[silent]",
        "(thinking)",
        "*shrugs*",
        "N/A",
        '""',
        "<empty>",
        "!",
    ),
    prefixes=("", "Like I said: ", "Um, ", "Please, "),
)
