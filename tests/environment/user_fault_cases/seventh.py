"""What simulated users and agents say, for injected faults of the user: the seventh texts on which settled rules were
measured (94.5 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

SEVENTH = Texts(
    questions=(
        Question(
            (
                "Thanks for reaching out! Please share your email so I can pull up your account.",
                "No worries. If you could just give me your email, I'll find your account.",
                "I couldn't find an email in your message. What's the email on file?",
            ),
            (
                "I really can't remember my email.",
                "Would my name do instead? It's {name}.",
                "I'm sorry, I have no access to my email right now, so I can't look.",
            ),
        ),
        Question(
            (
                "Can I get your order ID?",
                "Thank you. And which order ID should I look for?",
                "It seems that the order ID is missing from your message. Can you send it again?",
            ),
            (
                "{id}",
                "My order ID is {id}. Please hurry.",
                "I've deleted the receipt, so I don't know the order ID.",
            ),
        ),
        Question(
            (
                "The upgrade to business class is $310 per passenger. Would you like to go ahead?",
                "To summarize: business class for $310 per passenger. Do you agree?",
                "Please confirm (yes/no): upgrade to business class for $310 per passenger.",
            ),
            (
                "Yes, I agree.",
                "That's far too expensive. What about premium economy?",
                "Yes please.",
                "No thanks.",
            ),
        ),
        Question(
            (
                "Would a morning or an evening flight work better for you?",
                "There is a flight in the morning and one in the evening. Which one shall I take?",
                "I'd just like to check: morning or evening flight?",
            ),
            (
                "Morning works better.",
                "The evening one, please.",
                "I am fine with either, but the evening one gives me time to finish my work at the office beforehand.",
            ),
        ),
        Question(
            (
                "Can you run a speed test and let me know the result?",
                "What was the result of the speed test?",
                "Have you had a chance to run the speed test?",
            ),
            (
                "The speed test says that it is poor.",
                "I ran the speed test: no connection.",
                "How do I run a speed test?",
            ),
        ),
        Question(
            (
                "Which items from this order would you like to return?",
                "All of the items, or only some of them? Please list the ones to return.",
                "I need a list of the items that you want to return.",
            ),
            (
                "All of the items.",
                "Just the headphones. They hurt my ears after an hour or so and the cable is much too short.",
                "Only the water bottle, please.",
            ),
        ),
        Question(
            (
                "What's the occasion for changing your trip? It affects the fee.",
                "The fee depends on why you are changing the trip. Could you tell me?",
                "I need to understand why you are changing the trip.",
            ),
            (
                "There was a death in the family.",
                "My meeting was moved to another week.",
                "I'd prefer not to talk about it.",
            ),
        ),
    ),
    evasions=(
        "My garden is full of snails this year.",
        "I love the smell of rain.",
        "There was a funny clown at the fair.",
        "Penguins are so cute.",
        "The radio is playing my favourite song.",
        "My nephew just learned to ride a bicycle.",
        "Isn't it strange how quickly bread goes stale?",
        "I used to play chess with my father.",
        "We had a power cut yesterday.",
        "A friend of mine collects stamps.",
        "Mondays are the worst.",
    ),
    work=(
        "Sure, let me take a look at that for you.",
        "Thank you for confirming. I'll process the upgrade now.",
        "Please wait a moment while I retrieve the details.",
        "Got it. I will check the inventory.",
    ),
    offers=(
        "I can transfer you to a human agent for further assistance if you'd like.",
        "Would you like to be connected with a human agent?",
        "If you'd prefer, a human agent could take a look. Just let me know.",
    ),
    transfers=(
        "I'll now transfer you to a human agent who can assist you further. Please hold.",
        "YOU ARE BEING TRANSFERRED TO A HUMAN AGENT. PLEASE HOLD ON.",
        "I have transferred you to a human agent. They will be with you shortly.",
    ),
    closings=(
        "Your order has been cancelled. If there's anything else, just let me know!",
        "You're welcome! Have a wonderful day!",
        "I understand your frustration, but I cannot make an exception to the policy.",
        "The upgrade is complete. Enjoy your flight!",
    ),
    thanks=(
        "Great, thank you for all your help! ###STOP###",
        "No, that will be all. Thank you! ###STOP###",
        "Alright, I understand. Thanks for your time. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "I'd be happy to help you with that! Could you please provide your user ID?",
        "Thank you for your patience. Your order has been successfully cancelled.",
        "I understand. To proceed with the return, I'll need your order ID and the reason for the return.",
        "I've updated your shipping address. Is there anything else I can assist you with today?",
        "Unfortunately, we are unable to process your refund at this time.",
        "Let me transfer you to a human agent who can better assist you.",
        "You're all set! Your new flight has been booked.",
        "Could you please confirm whether you'd like to proceed with this change?",
        "I have found your reservation. It is for two passengers.",
        "Sure! I can help you cancel your order.",
        "As per our policy, exchanges are only possible once.",
        "Please note that your refund will take 5-7 business days.",
        "Your data has been refueled and your plan is active.",
        "Hi! This is your virtual assistant. What can I do for you?",
        "I'm sorry for the inconvenience this has caused you. I will look into your account.",
        "Assistant: How can I help?",
    ),
    leaks=(
        "According to my instructions, I only want to return the headphones.",
        "My instructions do not mention an email address, so I can't give you one.",
        "As the user in this scenario, I would like to cancel.",
        "I'm playing the customer, so you should ask me questions.",
        "Task instructions: You are impatient.",
        "I don't have that in my scenario details.",
        "The user would like to cancel the flight.",
        "I'm an AI language model and can't access a phone.",
        "I'm not supposed to tell you my order ID until you ask.",
        "The instructions I received say that I should insist.",
        "Let me stay in character: I'm really angry!",
        "This conversation is a simulation.",
        "My role here is to test your patience as a customer in this simulation.",
        "The system prompt says to output a stop token.",
        "I was asked to act as an elderly customer.",
    ),
    recitals=(
        "{sentence}",
        "So, {sentence}",
        "{sentence} Is that clear?",
        "Let me explain. {sentence} What are my options?",
    ),
    inventions=(
        "Sure! My order ID is #W{d7}.",
        "My user ID is {first}_{last}_{d4}.",
        "Here is my reservation ID: {code}.",
        "Yes, it's {first}.{last}@example.com.",
        "You can contact me at {d3}-{d3}-{d4}.",
        "My zip code is {d5}.",
        "Please refund it to gift_card_{d7}.",
        "The item ID is {d10}.",
        "I believe it is W{d7}.",
        "I'd like to pay with the card ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Yes, please proceed. ###STOP###",
        "Thank you for your help! ###STOP###",
        "Okay, sounds good. ###STOP###",
        "I would like to return the headphones. ###STOP###",
        "Perfect, thank you! ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Yes, please transfer me. ###TRANSFER###",
        "I need to speak to a human. ###TRANSFER###",
        "Okay, thanks. ###TRANSFER###",
    ),
    empty=(
        "",
        " ",
        "\n",
        "...",
        "\u2014\u2014",
        "[No response]",
        "(User remains silent)",
        "*silence*",
        "None",
        '" "',
        "<blank>",
        "??",
    ),
    prefixes=("", "I already told you: ", "Hello? ", "Okay, "),
)
