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
    " lang aber oder sind werden wird haben hat kann bei nach aus wenn sie er man ihr du uns ihnen ihre"
    " ihren ihrem ihrer sein seine mein meine kein keine jeden jede jeder jedes ein einem einer eines"
    " dass so sehr mehr viel viele wenig nur noch schon immer am an zum zur vom beim ins bis durch um"
    " über unter vor gegen ohne zwischen weil dann da hier dort was wer wo warum welche diese dieser"
    " dieses war waren bin bist wäre würde können könnte müssen muss sollte sollten soll wollen machen"
    " gibt gut besten tag täglich ja nein denn doch",
    "en": "the of and to in is that it for you was with as be this have from or by but not are at on they"
    " we i can your if will has their which do a an me my he she his her him our us so no then than"
    " there here what when where who why how would could should must may might were been being had did"
    " does all any each every some more most many much other only just about into over up out also"
    " very good best day these those its it's don't yes",
    "es": "el la los las de que y en un una es por con no para se su lo como más pero está son del al si"
    " muy este esta hay también porque a me te nos le les mi mis tu tus sus sí ya yo él ella ellos"
    " ellas usted ustedes nosotros o u ni e sin sobre entre hasta desde cuando donde quien qué cómo"
    " cuál todo todos toda todas cada otro otra mucho mucha muchos muchas poco menos antes después"
    " siempre nunca bien buena bueno mejor puede pueden debe hacer haga hace tiene tienen ser fue era"
    " estar estos estas ese esa eso esto así aunque unos unas días día agua gran según durante coma"
    " beba",
    "fi": "ja on ei se että hän oli mutta kun niin joka myös tai ovat olla ole minä sinä me he tämä jos"
    " kuin voi sekä hyvin jotka mitä missä miksi kuka tämän nämä nuo sen siitä sitä heidän hänen minun"
    " sinun joita jonka vain vielä jo aina usein paljon kanssa ilman ennen jälkeen koska jotta vai"
    " eivät en et emme olen olet olemme olivat",
    "fr": "le la les de des et en un une est que qui pour dans ce il elle nous vous ne pas avec au aux du"
    " se plus par sont mais ou je cette être a à y on tu te me moi toi sa son ses leur leurs mon ma"
    " mes ton ta tes notre votre vos nos l d j n s c qu m t si tout tous toute toutes chaque très bien"
    " bon bonne peu moins sans sous sur entre vers chez avant après pendant depuis quand comme comment"
    " où quoi donc car ni même aussi avoir fait faire faites peut peuvent doit était sera ont ai as"
    " cet ces ceux cela ça jour jours toujours jamais encore mieux elles ils eau beaucoup",
    "it": "piace il lo la gli le di che e è un una per con non in del della dei sono si come ma da anche più"
    " questo questa nel alla al essere ho a ad ed o i ci vi mi ti ne lei lui loro noi voi io tu suo"
    " sua suoi sue mio mia tuo tua nostro ogni tutti tutto tutte tutta molto molti molta poco meno"
    " senza sotto sopra tra fra fino dove quando quanto chi cosa cui perché però quindi così ancora"
    " sempre mai già bene buono buona meglio può possono deve devi fare fai fa ha hanno sei era stato"
    " questi queste quello quella dal dalla dai dalle dello degli delle allo agli alle nello nella nei"
    " negli nelle sul sulla sui sulle col l d all dell nell sull dall uno giorno giorni acqua solo"
    " dopo prima",
    "pl": "i w nie na się z jest to że do jak o co ale po za od dla są przez tego być może oraz lub który"
    " jego",
    "pt": "o a os as de que e em um uma é para com não por se do da dos das no na mais como mas ao foi são"
    " gosto você também está muito isso à às pelo pela pelos pelas num numa nos nas dum ele ela eles elas"
    " nós eu me te lhe lhes meu minha seus sua suas nosso nossa este esta estes essa esse isto aquele"
    " cada todo todos toda todas outro outra muitos muita muitas pouco menos sem sob sobre entre até"
    " desde depois antes quando onde quem qual porque pois nem já sempre nunca bem bom boa melhor pode"
    " podem deve fazer faça faz tem têm ser era estar estão há ou só ainda assim dia dias água uns"
    " umas então durante",
    "sw": "na ya wa kwa ni katika za la kuwa hii cha au lakini kama hiyo sana huu yake pia watu hivyo kila"
    " ili si huo vya yako",
    "vi": "và là của có không được một cho những các trong người với này đã để khi đến tôi bạn rất như cũng"
    " nhiều ra ở về sẽ",
    "hi": "है और हैं के की में का से को यह था कि नहीं पर एक ने लिए भी हम आप वह",
    "mr": "आहे आणि आहेत मी तो ही हे या ते नाही करू आपण होते एक साठी असते व मध्ये केले",
    "ne": "छ र छन् हो मा लागि गर्न पनि को यो भएको गर्छ हुन्छ गर्नुहोस् तपाईं म हामी थियो",
}
_WORDS = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}
_LETTERS = {
    "de": frozenset("äöüß"),
    "es": frozenset("ñáéíóú"),
    "fi": frozenset("äö"),
    "fr": frozenset("éèêëàâçîïôûùœ"),
    "it": frozenset("àèéìòù"),
    "pl": frozenset("ąćęłńóśźż"),
    "pt": frozenset("ãõáâàçéêíóôú"),
    "vi": frozenset("ăđơư") | frozenset(map(chr, range(0x1EA0, 0x1EFA))),
}
"""Letters beside a to z that many words of the language have; each word that has one counts."""
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


def may_be(text: str, code: str) -> bool:
    """Whether the text is most likely in the language, or as likely as in the one that `likely` names."""
    best = likely(text)
    if best is None or best == code or not {best, code} <= set(_WORDS):
        return best == code
    found = _found(Counter(_words(text)), {best, code})
    return found[code] == found[best] > 0


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


def _found(words: Counter[str], codes: set[str]) -> dict[str, int]:
    """For each language, how many words of the text are its function words or have its letters, twice where
    both."""
    return {
        code: sum(
            number * ((word in _WORDS[code]) + (not _LETTERS.get(code, frozenset()).isdisjoint(word)))
            for word, number in words.items()
        )
        for code in sorted(codes)
    }


def _most(words: Counter[str], codes: set[str], otherwise: str) -> str:
    """The language that most speaks for, `otherwise` where nothing speaks for any."""
    found = _found(words, codes)
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
