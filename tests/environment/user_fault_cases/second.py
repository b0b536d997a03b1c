"""What simulated users and agents say, for injected faults of the user: the second texts on which settled rules were
measured (90.4 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

SECOND = Texts(
    questions=(
        Question(
            (
                "Happy to help! Which e-mail did you register with?",
                "I can't find you yet. Would you mind telling me the e-mail you registered with?",
                "The system asks for an e-mail before it shows me anything. What e-mail did you register with?",
            ),
            (
                "I registered ages ago, I really don't know which e-mail that was.",
                "No idea, to be honest. My wife set the account up.",
                "I'd prefer not to say. Can't you use my name? It's {name}.",
            ),
        ),
        Question(
            (
                "Could I have your zip code for verification?",
                "Sorry to insist, but I do need the zip code of your address for verification.",
                "Let's try again: what's your zip code?",
            ),
            (
                "I can't remember it, we moved only recently. I'm sorry about that!",
                "Do you need the new one or the old one? I'm not sure which zip code you have.",
                "I don't know my zip code by heart. My name is {name}, does that help?",
            ),
        ),
        Question(
            (
                "The new total is higher than before. Shall I book the new total on your card?",
                "I can only book the new total with your consent. Do you agree to the new total?",
                "Is it okay for you that I book the new total? Yes or no will do.",
            ),
            (
                "Oh, that's more than I thought. But okay, book it.",
                "No, that's too much for me. I'd rather leave everything as it was.",
                "Of course, the total is fine.",
                "I'm sorry for being slow, I had to ask my husband first. He says yes.",
            ),
        ),
        Question(
            (
                "Which of the two items should be sent back, the lamp or the chair?",
                "Please tell me whether the lamp or the chair should be sent back.",
                "I still don't know which item should be sent back. The lamp or the chair?",
            ),
            (
                "The lamp, please. The chair is great.",
                "Both of them, actually.",
                "Just the chair. I've grown fond of the lamp, ugly as it is, and my daughter would never forgive me.",
            ),
        ),
        Question(
            (
                "What does the screen show at the top right?",
                "Can you look at the screen and tell me what it shows at the top right?",
                "I need to know what the screen shows at the top right. What can you see there?",
            ),
            (
                "There's a little airplane at the top right.",
                "I see no bars at all, just an exclamation mark.",
                "The screen is cracked, so it's hard to tell. Something like a battery, I think.",
            ),
        ),
        Question(
            (
                "Could you read me your confirmation number?",
                "I haven't got your confirmation number yet. Could you read it out to me?",
                "Your confirmation number, please?",
            ),
            (
                "One sec... {id}. Did I read that correctly?",
                "My confirmation says {id}.",
                "I can't find the letter with the confirmation number. Would my name do? {name}.",
            ),
        ),
        Question(
            (
                "And what is the reason for cancelling?",
                "I have to enter why you are cancelling. What shall I write as the reason?",
                "Please give me a reason for cancelling, any will do.",
            ),
            (
                "The weather forecast is awful and I'm afraid of flying in storms.",
                "Write whatever you like: I no longer need it.",
                "My sister fell ill, so I have to look after her kids.",
            ),
        ),
    ),
    evasions=(
        "Guess what, I won a prize at the fair yesterday.",
        "People always say that I have a nice voice.",
        "Do you also work on Sundays?",
        "Coffee tastes best in the early morning.",
        "Hahaha, this line makes strange noises.",
        "The neighbours are mowing their lawn again.",
        "Football was great on Saturday.",
        "I wonder where my glasses are.",
        "Grandma used to sing a song about that.",
        "Somehow Mondays never end.",
    ),
    work=(
        "Thanks! I'm going to look this up for you. This may take a moment.",
        "Okay, I'll check the availability first.",
        "Let me verify that with our system before we continue.",
    ),
    offers=(
        "Sadly I have reached my limits here. Do you want me to transfer you to someone who can decide this?",
        "We could also transfer this to a human agent, if that would be better for you.",
        "I'd have to transfer you for that. Would that be alright?",
    ),
    transfers=(
        "I'm escalating this to a human agent, who will be with you in a minute.",
        "Transferring you now. Thanks for waiting!",
        "Since this is outside of my reach, I will transfer you to a human agent.",
    ),
    closings=(
        "That's sorted. Anything else?",
        "You're very welcome. Have a lovely weekend!",
        "The chair goes back and the money will be on your card within a week. Goodbye!",
        "As I said, I cannot change this booking. I'm sorry.",
    ),
    thanks=(
        "Nope, that's it. Thanks a million! ###STOP###",
        "Too bad, but thank you for trying. ###STOP###",
        "Good, you've been very kind. Sorry again for the confusion earlier. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hi, welcome to our support! How may I assist you today?",
        "Of course! To help you with your return, I need your order number and your email.",
        "I've found your booking. Would you like to proceed with the cancellation of your flight?",
        "Great news: your replacement has been shipped and will arrive within 3 days.",
        "I'm sorry to hear that. I will refund your purchase immediately.",
        "Customer Support: Thank you for holding.",
        "Please verify your identity by giving me your full name and zip code.",
        "Our system shows that your order has already been delivered.",
        "I have reset your data plan. Please check whether your phone works now.",
        "Your payment was declined. What is your preferred payment method?",
        "Let me check the status of your order for you.",
        "I can offer you a certificate of $100 as a gesture of goodwill.",
        "It was a pleasure assisting you. Is there anything else I may do for you today?",
        "As your service agent, I'd recommend the premium plan.",
        "Please hold on while I transfer you to my supervisor.",
        "May I have your user ID, please?",
        "I've added three checked bags to your reservation at no cost.",
        "Under our policy, basic economy flights cannot be changed.",
    ),
    leaks=(
        "The scenario I was given only mentions one order.",
        "My instructions are to end the call if you refuse.",
        "I'm role-playing a customer, so let's say the zip code is unknown.",
        "I was instructed to be brief.",
        "According to the task instructions, I only accept a full refund.",
        "As a language model I have no email.",
        "Sorry, I broke character for a moment.",
        "My script says that I am in a hurry.",
        "Reason for call: exchange.\nKnown info: my name.",
        "The user would now say yes and thank the agent.",
        "I'm supposed to wait until you ask for my address.",
        "I'm pretending to be a customer with a broken phone.",
        "It isn't part of my persona to know such things.",
        "My role in this conversation is to insist on compensation.",
        "I am not allowed to reveal my birthday according to my prompt.",
        "The simulation ends here, I guess.",
        "I have been told to act like a confused person.",
    ),
    recitals=(
        "{sentence}",
        "Okay, so: {sentence}",
        "Thanks. {sentence} I will wait.",
        "{sentence} Understood?",
        "Sorry for the long text, but {sentence} That is all I can say, and I hope that you can do something.",
    ),
    inventions=(
        "Here you go: W{d7}",
        "Sorry, it's #W{d7}, I mixed it up before.",
        "My login is {first}_{last}_{d4}, all in small letters.",
        "{code} is what is printed on my ticket.",
        "You can write to {last}.{first}@mail.example.com.",
        "Please call me back on {d3}-{d3}-{d4}.",
        "Well, the postal code here is {d5}.",
        "I paid by gift card {d7}, I think.",
        "It's the item with the number {d10}, I have it in front of me.",
        "Just take paypal_{d7}.",
        "My customer number would be C{d4}.",
        "You said that it was #W{d7}, didn't you?",
    ),
    stops=(
        "###STOP###",
        "Mhm. ###STOP###",
        "Right away. ###STOP###",
        "Lovely, thank you for all your help today! ###STOP###",
        "I would also like a receipt. ###STOP###",
        "Yes, go ahead.###STOP###",
        "Please do so. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Could I speak with your manager? ###TRANSFER###",
        "Yes, that would be great. ###TRANSFER###",
        "Okay, thanks, I am waiting. ###TRANSFER###",
        "You can't help me. ###TRANSFER###",
    ),
    empty=(
        "",
        "  ",
        "\n\n",
        "..",
        "\u2026\u2026",
        "--",
        "[empty]",
        "(says nothing)",
        "(pause)",
        "null",
        "''",
        "[no input]",
    ),
    prefixes=("", "Once more: ", "Look, ", "Hi again. "),
)
