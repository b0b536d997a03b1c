"""The user speaks as the agent: it offers help, asks for the customer's data, or reports what the service has done."""

from __future__ import annotations

import re

from .text import plain, without_quotes
from .turns import UserTurn

# What a service holds for its customer: "your order", "your account".
_THINGS = (
    r"(?:order|orders|account|reservation|reservations|booking|bookings|flight|flights|ticket|itinerary|refund|return|"
    r"exchange|cancellation|request|profile|line|subscription|service line|identity|purchase|delivery|shipment|trip|"
    r"payment|plan|bill|bills|task|tasks|membership|data plan|phone line|case|replacement|service)"
)
_NOT_THINGS = r"(?!['-]|\s+(?:policy|policies|link|page|email|e-mail|team|department|instructions|offer|website|desk))"
# What a service asks its customer for; not what a customer asks a service for ("your customer service number").
_DATA = (
    r"(?:(?!customer service|support|company|store|manager|supervisor|team|hotline|office|website)[\w-]+ ){0,2}?"
    r"(?:(?:order|user|account|reservation|booking|confirmation|customer|membership|member|line|item|task)s?[ -]"
    r"(?:reference|number|id|name|code|detail|info)\w*|e-?mails?\b|zip\b|zip ?code|postal code|(?:phone|telephone|"
    r"mobile) number|"
    r"full name|first name|last name|first and last name|date of birth|payment method|identity|username|"
    r"(?:shipping|billing|home|current|new|mailing)? ?address\b)"
)
_FILL = (
    r"(?:(?:the|new|current|full|associated|registered|original|preferred|own|complete|valid|correct|phone|mobile|"
    r"monthly|"
    r"data|recent|previous|outstanding|last|next|first|second|pending|upcoming|existing|latest)\s+){0,3}"
)
_DID = (
    r"(?:process(?:ed|ing)?|cancel+(?:ed|ing)?|updat(?:e|ed|ing)|refund(?:ed|ing)?|issu(?:e|ed|ing)|book(?:ed|ing)?|"
    r"chang(?:e|ed|ing)|modif(?:y|ied|ying)|exchang(?:e|ed|ing)|look(?:ed|ing)?(?: up| into| at)?|"
    r"pull(?:ed|ing)?(?: up)?|locat(?:e|ed|ing)|found|find|access(?:ed|ing)?|check(?:ed|ing)?|verif(?:y|ied|ying)|"
    r"escalat(?:e|ed|ing)|submit(?:ted|ting)?|appl(?:y|ied|ying)|add(?:ed|ing)?|remov(?:e|ed|ing)|complet(?:e|ed|ing)|"
    r"initiat(?:e|ed|ing)|retriev(?:e|ed|ing)|review(?:ed|ing)?|see|confirm(?:ed|ing)?|creat(?:e|ed|ing)|"
    r"resum(?:e|ed|ing)|reset(?:ting)?|restart(?:ed|ing)?|enabl(?:e|ed|ing)|activat(?:e|ed|ing)|"
    r"unlock(?:ed|ing)?|upgrad(?:e|ed|ing)|extend(?:ed|ing)?|renew(?:ed|ing)?|waiv(?:e|ed|ing)|correct(?:ed|ing)?|"
    r"fix(?:ed|ing)?|restor(?:e|ed|ing)|schedul(?:e|ed|ing)|forward(?:ed|ing)?|receiv(?:e|ed|ing)|pass(?:ed|ing)?|"
    r"register(?:ed|ing)?|approv(?:e|ed|ing)|"
    r"mark(?:ed|ing)?|set up|proceed(?:ed|ing)? with|go(?:ing)? ahead with|reactivat(?:e|ed|ing))"
)
_BY_ME = (
    r"\b(?:i|we)(?:'ve|'ll|'m| have| will| can| am| are| was| do| did|'d be able to| was able to| am able to)?"
    r"(?: not| unable to| cannot| can't| couldn't| now| also| just| already| successfully| indeed| gladly|"
    r" certainly| definitely| going to| go ahead and| "
    r"gone ahead and| able to| happy to| be| need to| currently| see that| happily)*"
)

# A thing of the customer's, by itself: a customer says "my order", though it may say "your order page".
_OWN = (
    r"(?:orders?|account|reservations?|bookings?|ticket|itinerary|request|identity|purchase|subscription|case|"
    r"replacement|membership|payment|refund|exchange|cancellation)(?: (?:number |id )?#?\w*\d\w*)?"
)

# What a customer calls "your".
_COMPANYS = (
    r"(?:(?:web)?site|page|app|system|server|store|shop|company|polic(?:y|ies)|prices?|fees?|rates?|terms|"
    r"services?|team|"
    r"staff|support|airline|flights?|colleagues?|agents?|employees?|customer|phone|line)\b"
)

_SIGNS = [
    # Offers.
    r"\b(?:how|what) (?:can|may|could|might) (?:i|we) (?:help|assist|do for you|be of (?:help|service|assistance))\b",
    r"\b(?:i|we)(?:'d| would|'m| am|'ll|'re| are)?(?: be)?(?: more than| very| always| so| only too)? "
    r"(?:happy|glad|pleased|delighted|here|ready) to (?:be of|(?:help|assist)(?: you\b| (?:with|further|today)\b|"
    r"[.!,]|$))",
    r"\b(?:i|we)(?: can|'ll| will| could|'d)(?: certainly| definitely| gladly| surely| absolutely| of course| be "
    r"able to| "
    r"try to| do my best to|'d love to)* (?:help|assist) you\b",
    r"\banything else (?:(?:that )?(?:i|we) (?:can|could|may)\b(?! (?:do on my|provide|try|tell you|give you|check))"
    r"[^.?!]{0,20}\b(?:help|assist|do for you)|"
    r"you(?:'d| would| may| might)? (?:need|like|want)[^.?!]{0,20}\b(?:help|assist|assistance)\b)",
    r"\bhelp you with (?:today|that today|anything|your)\b",
    r"\b(?:i'll|i will) be (?:helping|assisting) you\b|\byou(?:'ve| have) reached (?:our|the|customer|"
    r"[\w ]{0,20}(?:support|service))\b|\b(?:glad|happy) (?:i|we) could (?:help|assist)\b|"
    r"\breason for your (?:\w+ )?(?:cancellation|return|"
    r"exchange|request|call|visit|refund)\b|\b(?:thank you|thanks) for (?:holding|waiting|bearing with)\b|"
    r"\bto (?:proceed|continue|complete (?:this|your)|process (?:this|your))\b[^.?!]{0,20}, ?"
    r"(?:i(?:'ll| will)? need|please (?:provide|share|confirm|tell|give))\b",
    r"\b(?:thank you|thanks) (?:so much |very much )?for (?:contacting|calling(?: in)?|choosing|reaching out to|"
    r"shopping|"
    r"flying with|being (?:a|such a|our)|your (?:loyalty|business|purchase|order)|(?:providing|sharing|confirming) "
    r"your)\b",
    r"\b(?:shall|should|may|can) (?:i|we) (?:now )?(?:book|cancel|process|change|search|look|check|rebook|upgrade|"
    r"reset|arrange|order|refund|exchange|modify|update|send)\b[^.?!]{0,40}\bfor you\b",
    r"\b(?:would you like|do you want|shall|should) (?:me|i|us|we)(?: to)?(?: go ahead and| now)? "
    r"(?:process|refund|issue you|transfer you|connect you|book|look (?:that |it |this )?up for you|upgrade you|"
    r"cancel your|update your|modify your|exchange your|return your|proceed with (?:your|the (?:" + _THINGS + r")))\b",
    r"\bdo you (?:wish|want|confirm)(?: to| that you)? (?:to )?(?:proceed|wish|want)\b",
    # The customer's data.
    r"\b(?:provide|share|confirm|verify|give|tell|enter|send|need|require|have|get|ask(?: you)? for|know|specify|"
    r"state|spell|type(?: in)?|indicate)(?: me| us)?(?: with)? your " + _FILL + _DATA,
    r"\bwhat(?:'s| is| are) your " + _FILL + _DATA,
    r"\b(?:verify|authenticate|confirm) your (?:identity|account)\b",
    r"\bto (?:(?:assist|help) you (?:better|further|with)|verify you\b|(?:locate|look up|pull up|access) your|get "
    r"started,? "
    r"(?:could|can|may|please|i(?:'ll)? need))\b",
    # What the service does and has done.
    _BY_ME + r" " + _DID + r"\b[^.?!,;]{0,40}?\byour " + _FILL + _THINGS + r"\b" + _NOT_THINGS,
    r"\byour " + _FILL + _OWN + r" (?:has|have|is|are|was|were|will|can|cannot|can't|could|should|includes?|shows?)\b"
    r"(?! (?:too|so|very|not (?:clear|good|helpful|fair)|policy))",
    r"\b(?:let me|allow me to)\b[^.?!]{0,30}\b"
    + _DID
    + r"\b[^.?!]{0,30}\byour "
    + _FILL
    + _THINGS
    + r"\b"
    + _NOT_THINGS,
    r"\b(?:i|we)(?:'ll| will|'m| am|'re| are| can| need to| have to)(?: now| going to| go ahead and| happy to| be)* "
    r"(?:transfer|transferring|connect|connecting|escalat(?:e|ing)|refer|referring|send|sending|issue|issuing|offer|"
    r"offering|refund|refunding|credit|crediting|rebook|rebooking|upgrade|upgrading) (?:you|your)\b"
    r"(?! (?:the|my|a (?:photo|picture|copy|screenshot|message|link)))",
    r"\byour "
    + _FILL
    + _THINGS
    + r"\b(?<!your service)[^.?!,;]{0,40}\b(?:has|have)(?: now| also| already| just)?(?: successfully)? been\b",
    r"\byour "
    + _FILL
    + _THINGS
    + r"\b[^.?!,;]{0,40}\b(?:is|are)(?: now| all| being| currently| already| successfully)+ "
    r"(?:set|processed|confirmed|complete|completed|cancel+ed|updated|booked|active|refunded|on its way|eligible)\b",
    r"\byour " + _FILL + _THINGS + r"\b[^.?!,;]{0,40}\b(?:will|should|can)(?: now| then| soon| also)? be "
    r"(?:\w+ed|sent|active|ready|made|paid|back)\b",
    r"\b(?:to|on|back to) your (?:original (?:payment|form of)|credit card|gift card|paypal|account|card on file)\b"
    r"[^.?!]{0,30}\bwithin\b",
    r"\byou(?:'ll| will| should)(?: shortly| soon| also)? (?:receive|get|see) (?:a|an|your|the|it|the "
    r"funds)\b[^.?!]{0,40}"
    r"\b(?:email|e-mail|confirmation|refund|credit|notification|within|business days|label|sms)\b",
    _BY_ME + r" (?:issu|refund|credit|process|waiv|escalat|reactivat|suspend|unlock|rebook|reinstat)(?:e|ed|ing)?\b"
    r"[^.?!;]{0,60}?\byour\b",
    r"\byour (?!website|site|page|app\b|server|store|shop|company|policy|service\b)[\w-]+(?: [\w-]+)? "
    r"(?:is|are|has|have) now\b",
    r"\byour (?:(?:phone|mobile|second|first) )?(?:line|sim(?: card)?|data plan|roaming)\b[^.?!,;]{0,20}\b"
    r"(?:is|was|has|got) (?:\w+ )?(?:suspended|activated|restored|disabled|enabled|locked|connected|reactivated|"
    r"resumed)\b",
    r"\byour (?!"
    + _COMPANYS
    + r")[\w-]+(?: [\w-]+)? (?:has|have)(?: now| also| already| just)?(?: successfully)? been "
    r"(?:\w+ly )?(?:\w{2,}ed|sent|made|paid|found|set|reset|taken|given|frozen)\b",
    _BY_ME
    + r" (?:updat|chang|modif|verif|correct|reset|confirm)\w*\b[^.?!,;]{0,20}?\byour "
    + _FILL
    + r"(?:(?:e-?mail|"
    r"shipping|billing|mailing|home) )?(?:address|e-?mail|phone number|password|details|payment method)\b",
    r"\b(?:have|get|tell me|know|confirm|verify|provide|share|need) (?:me )?(?:with )?the (?:e-?mail|phone number|"
    r"name|address|"
    r"zip code)(?: address)? (?:on|of|for|associated with|linked to|registered (?:to|under|with|on)) your\b",
    r"\b(?:i|we)(?:'ve| have)? (?:booked|cancel+ed|ordered|placed|arranged|processed|reserved|changed|updated|"
    r"issued|reset|"
    r"restored|activated)\b[^.?!]{0,40}\bfor you\b|\bwe(?:'ve| have|'ll| will)? (?:sent|send|emailed|charged|"
    r"shipped|mailed)\b",
    r"\byour (?:[\w-]+ )?(?:card|account) (?:was|has been|will be) (?:charged|credited|debited|refunded)\b",
    r"\blet me (?:transfer|connect|refer|refund) you\b",
    r"\bconfirm (?:that|whether|if) you(?:'d| would)? (?:like|want|wish|agree)\b|\byou(?:'d| would)? (?:like|want|"
    r"wish) "
    r"(?:me )?to (?:proceed|continue|go ahead)\b",
    r"\bdo you (?:still )?need (?:any |further |more )?(?:help|assistance)\b|\b(?:what|how) else (?:can|may|"
    r"could) (?:i|we) (?:help|assist|do)\b",
    # The house.
    r"\bas (?:a|an|your|the) (?:(?:customer|support|service|airline|retail|telecom|technical|virtual|human) )*"
    r"(?:agent|representative|rep|assistant|support)\b(?!,? (?:you|said|told))",
    r"\b(?:per|under|by|with|to|in|based on|according to|due to) our (?:(?:current|company|store|airline|return|refund|"
    r"cancellation|exchange) )*(?:policy|policies|records?|system|terms|guidelines)\b",
    r"\bour (?:(?:current|company|store|airline|return|refund|cancellation|exchange) )*"
    r"(?:system|records|policy|policies|team|department|specialists?)\b[^.?!]{0,20}"
    r"\b(?:shows?|indicates?|states?|requires?|allows?|does(?:n't| not)|will|can|cannot|can't)\b",
    r"\bi (?:completely |fully |totally |can )*understand (?:your|how) (?:frustration|frustrating|upset)",
    r"\bwe(?: sincerely| deeply|'re sorry| are sorry)? (?:apologi[sz]e|appreciate your (?:patience|business|"
    r"loyalty))\b",
    r"\bwe(?:'re| are)(?: very| so| truly| really| sincerely)* sorry (?:for|about) (?:the|any|this|your)\b",
    r"\bwelcome to (?:our|the) (?:[\w-]+ ){0,3}(?:support|service|chat|help ?desk|hotline|centre|center|assistance)\b",
    r"\bour (?:records|database|agents?|representatives?|technicians?|warehouse|customers|(?:support|billing|technical|"
    r"service|refund|fraud|returns) (?:team|department|specialists?|agents?))\b",
    r"\byou(?:'re| are) (?:now )?(?:all set|eligible (?:for|to)|entitled to|booked on|verified)\b|\byou qualify for\b|"
    r"\byou(?:'ve| have) (?:now )?been (?:verified|refunded|charged|booked|upgraded|enrolled|authenticated)\b",
    r"\bplease (?:hold|wait|bear with me|stand by|allow me)\b[^.?!]{0,40}\bwhile (?:i|we)\b[^.?!]{0,40}\b(?:your|"
    r"this for you|"
    r"that for you|transfer|records?|system)\b",
    r"\byou are being transferred\b",
    r"\b(?:reply|respond|answer) (?:with )?[\"']?yes[\"']? (?:to|if you)\b",
    r"\((?:yes ?/ ?no|yes or no)\)",
    r"^\s*(?:\[)?(?:customer (?:service|support)(?: (?:agent|representative))?|agent|assistant|support(?: agent)?|"
    r"representative|service rep|csr)(?: \([^)\n]*\))?(?:\])?\s*:",
]
_AGENT = re.compile("|".join(f"(?:{sign})" for sign in _SIGNS), re.MULTILINE)


def speaks_as_agent(turn: UserTurn) -> str | None:
    """The words in which the user speaks as the agent, or None. Quotations of the agent do not count."""
    found = _AGENT.search(without_quotes(plain(turn.said)))
    return found.group().strip() if found else None
