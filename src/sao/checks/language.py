"""Which language a text is in, without a model: by its script, and within a script by function words.

It knows the 30 languages of IFEval. It is meant for an answer of a sentence or more in one language; a text
of names or of a few words may be taken for English.
"""

from __future__ import annotations

import unicodedata
from collections import Counter

NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "de": "German", "en": "English", "es": "Spanish",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi",
    "it": "Italian", "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi",
    "ne": "Nepali", "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili",
    "ta": "Tamil", "te": "Telugu", "th": "Thai", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
}  # fmt: skip
"""The languages by their ISO 639-1 codes."""

_BY_SCRIPT = {
    "BENGALI": "bn", "GUJARATI": "gu", "HEBREW": "he", "HIRAGANA": "ja", "KATAKANA": "ja", "KANNADA": "kn",
    "HANGUL": "ko", "MALAYALAM": "ml", "GURMUKHI": "pa", "TAMIL": "ta", "TELUGU": "te", "THAI": "th",
}  # fmt: skip
_SCRIPTS = {*_BY_SCRIPT, "LATIN", "CYRILLIC", "ARABIC", "DEVANAGARI", "CJK"}
_FUNCTION_WORDS = {
    "de": "der die das und ist nicht eine einen zu mit auf für sich dem den des von ich wir es im auch wie"
    " aber oder sind werden wird haben hat kann bei nach aus wenn",
    "en": "the of and to in is that it for you was with as be this have from or by but not are at on they we"
    " i can your if will has their which do",
    "es": "el la los las de que y en un una es por con no para se su lo como más pero está son del al si muy"
    " este esta hay también porque",
    "fi": "ja on ei se että hän oli mutta kun niin joka myös tai ovat olla ole minä sinä me he tämä jos kuin"
    " voi sekä hyvin jotka",
    "fr": "le la les de des et en un une est que qui pour dans ce il elle nous vous ne pas avec au aux du se"
    " plus par sont mais ou je cette être",
    "it": "il lo la gli le di che e è un una per con non in del della dei sono si come ma da anche più questo"
    " questa nel alla al essere ho",
    "pl": "i w nie na się z jest to że do jak o co ale po za od dla są przez tego być może oraz lub który"
    " jego",
    "pt": "o a os as de que e em um uma é para com não por se do da dos das no na mais como mas ao foi são"
    " você também está muito isso",
    "sw": "na ya wa kwa ni katika za la kuwa hii cha au lakini kama hiyo sana huu yake pia watu hivyo kila"
    " ili si huo vya yako",
    "vi": "và là của có không được một cho những các trong người với này đã để khi đến tôi bạn rất như cũng"
    " nhiều ra ở về sẽ",
    "hi": "है और हैं के की में का से को यह था कि नहीं पर एक ने लिए भी हम आप वह",
    "mr": "आहे आणि आहेत मी तो ही हे या ते नाही करू आपण होते एक साठी असते व मध्ये केले",
    "ne": "छ र छन् हो मा लागि गर्न पनि को यो भएको गर्छ हुन्छ गर्नुहोस् तपाईं म हामी थियो",
}
_WORDS = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}
_DEVANAGARI = {"hi", "mr", "ne"}

SAMPLES = {
    "de": "Heute ist es warm und wir gehen mit dem Hund auf die Wiese.",
    "en": "This is a good day and we go to the meadow with the dog.",
    "es": "Este es un buen día y vamos con el perro a la orilla del lago.",
    "fr": "Il fait beau et nous allons avec le chien dans une forêt qui est calme.",
    "it": "Questo è un bel giorno e non siamo soli perché il cane è con noi nella casa.",
    "pt": "Hoje não chove e o cão está com a gente em uma praia que é muito calma.",
}
"""A sentence in each of a few languages."""


def likely(text: str) -> str | None:
    """The code of the language that the text is most likely in, None where it has no letter. Most letters
    decide on the script; any kana among Chinese characters makes Japanese."""
    scripts = Counter(script for letter in text if letter.isalpha() and (script := _script(letter)))
    if not scripts:
        return None
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana and kana + scripts["CJK"] > scripts.total() / 2:
        return "ja"
    main = max(scripts, key=lambda script: scripts[script])
    words = Counter(_words(text))
    match main:
        case "LATIN":
            return _most(words, set(_WORDS) - _DEVANAGARI, "en")
        case "CYRILLIC":
            return _cyrillic(text.casefold())
        case "ARABIC":
            return _arabic(text)
        case "DEVANAGARI":
            return _most(words, _DEVANAGARI, "hi")
        case "CJK":
            return "zh"
    return _BY_SCRIPT[main]


def _script(letter: str) -> str:
    """The first word of the letter's Unicode name, "" for scripts that are of no use here."""
    if letter.isascii():
        return "LATIN"
    name = unicodedata.name(letter, "").partition(" ")[0]
    return name if name in _SCRIPTS else ""


def _words(text: str) -> list[str]:
    """Parts between blanks without what stands around them; the parts of l'ami count each."""
    plain = text.casefold().replace("’", " ").replace("'", " ").replace("-", " ")
    return [word.strip('.,;:!?"“”„«»()[]*_¿¡।…') for word in plain.split()]


def _most(words: Counter[str], codes: set[str], otherwise: str) -> str:
    """The language with most function words in the text, `otherwise` where there are none."""
    found = {code: sum(words[word] for word in _WORDS[code]) for code in sorted(codes)}
    best = max(found, key=lambda code: found[code])
    return best if found[best] else otherwise


def _cyrillic(text: str) -> str:
    """Ukrainian by і, ї, є and ґ; Russian by ы, э and ё; otherwise Bulgarian by ъ and its function words."""
    ukrainian, russian = (sum(text.count(letter) for letter in letters) for letters in ("іїєґ", "ыэё"))
    if ukrainian or russian:
        return "uk" if ukrainian > russian else "ru"
    words = Counter(_words(text))
    bulgarian = sum(words[word] for word in ("е", "да", "се", "на", "са", "ще", "от", "за", "които", "със"))
    return (
        "bg"
        if "ъ" in text or bulgarian > sum(words[word] for word in ("и", "не", "что", "как", "я"))
        else "ru"
    )


def _arabic(text: str) -> str:
    """Urdu by ٹ, ڈ, ڑ, ں, ے and ہ; Persian by پ, چ, ژ, گ, and its forms of ی and ک; otherwise Arabic."""
    urdu = sum(text.count(letter) for letter in "ٹڈڑںےہ")
    persian = sum(text.count(letter) for letter in "پچژگیک")
    arabic = sum(text.count(letter) for letter in "ةيكىأإ")
    if urdu > len(text) / 100:
        return "ur"
    return "fa" if persian > arabic else "ar"
