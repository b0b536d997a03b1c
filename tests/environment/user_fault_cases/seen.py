"""What simulated users and agents say, for injected faults of the user: the first texts on which settled rules were
measured (92.4 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

SEEN = Texts(
    questions=(
        Question(
            (
                "To look into this I'll need the email address linked to your profile. What is it?",
                "I'm afraid I can't continue without your email. Which email address did you sign up with?",
                "Once more, could you give me the email address on file, please?",
            ),
            (
                "Hmm, I've changed my email a few times. I honestly can't recall which one you have.",
                "I'm not comfortable giving out my email, sorry. Is there another way to find me?",
                "Apologies, I don't have access to that email account any more, so I can't tell you.",
            ),
        ),
        Question(
            (
                "Who do I have the pleasure of speaking with? Please give me your first and last name.",
                "For verification, could I get your first and last name?",
                "I didn't catch your full name. Could you repeat your first and last name for me?",
            ),
            (
                "Of course! My name is {name}.",
                "Hi, this is {name}. Sorry for not saying so right away.",
                "You can find me under the name {name}, I believe. I'm in a bit of a hurry, to be honest.",
            ),
        ),
        Question(
            (
                "That would be a permanent change. Are you sure that you want to proceed?",
                "Just to be safe: do you want to proceed with this permanent change?",
                "I need an explicit confirmation for this permanent change. Can you confirm that you want to proceed?",
            ),
            (
                "Absolutely, I've thought about it. Please make the change.",
                "Yep, confirmed!",
                "Hold on, I am not sure about it yet. What happens if I change my mind later?",
                "Yes - and thank you for double-checking with me, I appreciate it.",
            ),
        ),
        Question(
            (
                "I can settle the difference by credit card or by gift card. Which payment method shall I use?",
                "I still have to know which payment method I should charge, the credit card or the gift card?",
                "Could you choose a payment method: credit card or gift card?",
            ),
            (
                "Let's use the gift card, if there's enough on it.",
                "Credit card, please.",
                "Whatever is cheaper for me. If it makes no difference, the card I paid with.",
            ),
        ),
        Question(
            (
                "May I ask why you want this changed?",
                "Our form has a field for the reason. Why would you like this changed?",
                "Could you explain why you want this changed, in a few words?",
            ),
            (
                "Sure: my plans have changed, and I can't make it any more.",
                "Honestly, I just found something better elsewhere.",
                "It was a mistake on my side when I put it in. I'm really sorry about the trouble.",
            ),
        ),
        Question(
            (
                "Could you tell me the order number or reservation number, so that I can open the file?",
                "Without the order number or reservation number I cannot open the file. Do you have it?",
                "Please type in the order number or the reservation number.",
            ),
            (
                "It should be {id}.",
                "I've got it here: {id}. Can you check that one?",
                "I wrote it down somewhere... it's {id}, if I read my own handwriting correctly.",
                "I threw the confirmation away, so I don't have the number at hand.",
            ),
        ),
        Question(
            (
                "Have you tried switching the device off and on again?",
                "Did you already switch the device off and on again, as I asked?",
                "Before we go on, can you tell me whether you have switched the device off and on again?",
            ),
            (
                "I did, twice, but nothing changed.",
                "No, I haven't. I'm a bit scared of losing my photos, but I'll try it.",
                "Yes, I switched it off for a minute and on again.",
            ),
        ),
    ),
    evasions=(
        "My cat just jumped onto the table, one second.",
        "You would not believe what a day this has been.",
        "I love the music that plays while people queue up at your hotline.",
        "What is the capital of Australia?",
        "I might bake a cake tonight.",
        "Companies used to be friendlier in the nineties.",
        "LOL",
        "Somebody is ringing at my door.",
        "It is raining cats and dogs over here.",
        "I also collect stamps.",
    ),
    work=(
        "Perfect, thanks for that. I'll take a look at it now, please give me a moment.",
        "Understood. I'm going to check this in our system, bear with me for a minute.",
        "Alright, let me see what I can find.",
    ),
    offers=(
        "This is beyond what I can do here. Should I hand you over to a colleague?",
        "If that does not suit you, a transfer to a human agent would be an option.",
        "I can escalate this to a supervisor if you want me to.",
    ),
    transfers=(
        "This needs a specialist. I am connecting you with a human agent right now.",
        "Okay, you will be transferred to a human agent. Please stay on the line.",
        "I've transferred your case to a human colleague, who will take over from here.",
    ),
    closings=(
        "Everything is set! Can I help with anything else today?",
        "It's done, and you'll get a confirmation soon. Enjoy your day!",
        "My pleasure. Take care!",
        "I'm sorry, but this isn't possible under the rules for your ticket.",
        "The request has gone through.",
    ),
    thanks=(
        "That's everything from me, cheers! ###STOP###",
        "Perfect, thanks a lot for sorting this out so quickly. Have a nice evening!\n\n###STOP###",
        "Alright then. Bye. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Good morning! What can I do for you?",
        "Sure, I can help you with that! Please share your reservation number with me.",
        "I have located your account. For security reasons, please confirm your date of birth.",
        "Thank you for your patience. Your exchange request has been submitted successfully.",
        "Your flight has been rebooked and you should get an email with the new itinerary.",
        "I'll go ahead and cancel your order now. Would you like a refund to your original payment method?",
        "Assistant: Certainly! Which item would you like to return?",
        "Unfortunately, as a support agent I am not allowed to make exceptions.",
        "I will connect you with one of our specialists.",
        "Based on our records, your plan includes 5 GB of data.",
        "We apologize for the inconvenience. We have issued you a certificate.",
        "I see your line is suspended because of an unpaid bill. Shall I send you a payment request?",
        "No worries, I'm here to help. Can I have your user ID to get started?",
        "You're all set! If there is anything else you need help with, just let me know.",
        "To proceed, I need your confirmation. Do you want to proceed (yes/no)?",
        "I've checked your reservation, and it is eligible for a full refund.",
        "Thanks for calling! May I have the phone number associated with your account?",
    ),
    leaks=(
        "I'm sorry, but my instructions tell me to reject that offer.",
        "In my role as the customer in this simulation I would now get angry.",
        "I don't have this in the information from my scenario.",
        "I have been instructed not to reveal my address.",
        "My persona is a 64-year-old retired librarian, so I will act confused.",
        "Since I am a simulated customer, I can't really check my phone.",
        "OK, staying in character: I want my money back!",
        "Unknown info: email address.\nI do not remember my email address.",
        "The user wants to exchange the item, so I should ask for that now.",
        "I was asked to pretend that I lost my receipt.",
        "As per the user instructions, I'd accept the cheaper one.",
        "This is not specified in the prompt that I was given.",
        "As an AI, I can't provide a zip code.",
        "Let me generate the ###STOP### token only when everything is done.",
        "My task is to play a customer who calls about a broken phone.",
        "The system prompt says that I only get one try.",
    ),
    recitals=(
        "{sentence}",
        "So here is the thing: {sentence}",
        "{sentence} That is what I have. What now?",
        "Hello there! {sentence}",
        "Well... {sentence} I hope that helps!",
    ),
    inventions=(
        "Let me look... the order is #w{d7}.",
        "Got it! {first}_{last}_{d4} is my username.",
        "I think the reservation is {code}, isn't it?",
        "Try {first}{last}{d3}@example.org please, that should be the one on file.",
        "My number? {d3} 555 {d4}, at least during the day.",
        "I live at {d3} Maple Street, {d5}.",
        "You could put it on my card ending in {d4}.",
        "It's customer C{d5}, line L{d5}.",
        "The code on the invoice says W-{d7}, I hope that's the right one. Sorry for the wait!",
        "Product number {d10}, the blue one.",
        "For the payment take credit_card_{d7}, thanks.",
        "order number: {d7}",
    ),
    stops=(
        "###STOP###",
        "Sure, that sounds right to me. ###STOP###",
        "Let me see. ###STOP###",
        "I'd still like the other thing changed as well. ###STOP###",
        "Great, thank you so much! ###STOP###",
        "Yes.\n\n###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "I'd like to talk to a human. ###TRANSFER###",
        "Alright, I'll wait for the human agent then. ###TRANSFER###",
        "Sounds good. ###TRANSFER###",
        "Fine.\n###TRANSFER###",
    ),
    empty=(
        "",
        "   ",
        "\t\n",
        ".",
        "?!",
        "\u2014",
        "[silence]",
        "(no reply)",
        "*waits*",
        "N/A",
        "<no response>",
        '""',
        "None",
    ),
    prefixes=("", "Again: ", "Well, ", "Hello? "),
)
