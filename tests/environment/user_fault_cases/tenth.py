"""What simulated users and agents say, for injected faults of the user: the tenth texts on which settled rules were
measured (92.6 % of the faults were found), and which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

TENTH = Texts(
    questions=(
        Question(
            (
                "I can check that. Which email is your account registered under?",
                "To check anything I need to know the email of your account.",
                "What email address did you register the account under?",
            ),
            (
                "I honestly forgot which one.",
                "Can we use my name, {name}, rather than an email?",
                "I don't have an email.",
            ),
        ),
        Question(
            (
                "Please send me the booking reference.",
                "Do you know your booking reference? Is it on the ticket?",
                "I'm sorry to ask again: what is the booking reference?",
            ),
            (
                "The reference is {id}.",
                "My ticket says {id}.",
                "There's no reference on my ticket, as far as I can see.",
            ),
        ),
        Question(
            (
                "I can cancel the line today. Are you sure that you want this?",
                "Cancelling the line can't be undone. Are you really sure?",
                "Please say yes if you are sure that you want the line cancelled.",
            ),
            (
                "Yes, I'm sure.",
                "No, leave the line as it is.",
                "I am absolutely sure.",
                "Not any more. What are my options?",
            ),
        ),
        Question(
            (
                "Do you need the cable in two metres or in three metres?",
                "How long should the cable be? Two metres or three metres?",
                "I have to know the length of the cable. Two or three metres?",
            ),
            (
                "Three metres.",
                "Two metres are enough.",
                "The longer cable, please. I'd like to put the lamp next to the armchair across the room.",
            ),
        ),
        Question(
            (
                "Now open the settings and turn off the battery saver.",
                "Did you turn off the battery saver?",
                "I'm asking because the battery saver must be turned off. Did you do that?",
            ),
            (
                "The battery saver is off now.",
                "I did, it's off.",
                "I can't find the battery saver.",
            ),
        ),
        Question(
            (
                "To which address should the parcel go?",
                "Where should the parcel be sent to? I need an address.",
                "What is the address for the parcel?",
            ),
            (
                "To the address of my office.",
                "The same address as always.",
                "Send the parcel to my home. My wife is there all day, so that somebody can open the door.",
            ),
        ),
        Question(
            (
                "What happened to the tablet?",
                "Could you describe what happened to the tablet?",
                "Tell me what happened to the tablet, please.",
            ),
            (
                "The tablet fell on the floor.",
                "It just stopped working.",
                "I don't know, my kids used it last.",
            ),
        ),
    ),
    evasions=(
        "Our dog learned a new trick.",
        "I adore sunsets.",
        "The opera last week was magnificent.",
        "Is it cold where you live?",
        "Someone stole my bicycle.",
        "Chocolate makes everybody happy.",
        "I'm knitting a scarf.",
        "The train was packed this morning.",
        "Kids grow up fast, don't they?",
        "A squirrel is sitting on my balcony.",
        "I once met a famous actor.",
    ),
    work=(
        "Okay, let me open your account.",
        "Thank you! I'm cancelling the line now.",
        "I'll go and check with the system, please wait.",
        "Fine, I will book the seats.",
    ),
    offers=(
        "Should I get a human agent for you?",
        "A human agent could help you with this. Would you like me to transfer you?",
        "I might transfer you to a human agent, but I don't think that it's needed.",
    ),
    transfers=(
        "I am transferring the chat to a human agent.",
        "A human agent will take over now, I'm transferring you.",
        "You are now being transferred to a human agent.",
    ),
    closings=(
        "The line is cancelled. What else can I do for you?",
        "Thanks for your call, and goodbye.",
        "I apologize, but this isn't possible.",
        "All the seats are booked. You'll find them in your booking.",
    ),
    thanks=(
        "Thank you, that's perfect. ###STOP###",
        "Nothing else, thanks. ###STOP###",
        "That's sad, but okay. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hi, thanks for calling! What can I help you with?",
        "Of course. May I have the email on your account?",
        "I have booked the seats for you. Your card was charged $40.",
        "Your tablet has been replaced.",
        "Before we start, could you verify your phone number?",
        "I'm going to transfer you to a supervisor.",
        "Our policy doesn't allow changes within 24 hours.",
        "Do you want me to book your seats?",
        "Agent: One moment, please.",
        "I appreciate your patience. I've reviewed your booking.",
        "Could you tell me your booking reference?",
        "Your refund should arrive within five days.",
        "I have checked your line, and it is active.",
        "We've sent a confirmation to your email.",
        "Can I help you with anything else?",
        "I've added a note to your account.",
    ),
    leaks=(
        "My instructions don't cover this question.",
        "I have no such detail in my scenario.",
        "I was told to act as if I were in a hurry.",
        "My persona is an old man.",
        "Unknown info: the booking reference.",
        "I'm only playing a role, so I can't check the ticket.",
        "As an AI model, I don't have a tablet.",
        "The user does not agree.",
        "I am instructed to reveal my name only when asked.",
        "The scenario states that I want three metres.",
        "I need to stay in character.",
        "According to my prompt, I'm a teacher.",
        "I'm supposed to play a customer who lost a parcel.",
        "This role-play is over.",
        "My task instructions say that I should wait.",
    ),
    recitals=(
        "{sentence}",
        "Well then. {sentence}",
        "{sentence} Got it?",
        "What I can say is this: {sentence} Please help me.",
    ),
    inventions=(
        "You can find it under #W{d7}.",
        "The user ID would be {first}_{last}_{d4}.",
        "The code on my ticket: {code}, a reservation.",
        "Please mail me at {first}@{last}.net.",
        "Dial {d3}-{d3}-{d4}.",
        "My postal code: {d5}.",
        "I want it on my paypal_{d7}.",
        "I mean the item {d10}.",
        "The parcel belongs to W{d7}.",
        "I have a Visa ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Good ###STOP###",
        "Thank you very much! ###STOP###",
        "Yes, I'm sure. ###STOP###",
        "I want my tablet repaired. ###STOP###",
        "All right. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Yes please. ###TRANSFER###",
        "Give me your supervisor. ###TRANSFER###",
        "Thanks! ###TRANSFER###",
    ),
    empty=(
        "",
        "\n\t",
        "   \n",
        "\u2026.",
        "__",
        "[stays silent]",
        "(no text)",
        "*quiet*",
        "NONE",
        "''",
        "<nothing>",
        "!!",
    ),
    prefixes=("", "One more time: ", "Hmm, ", "Listen, "),
)
