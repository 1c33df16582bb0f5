"""Texts to compare two checkers with: some for one instruction and its values, and some of all sorts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sao.checks.ifeval import SECTION_WORD

BY_LANGUAGE = {
    "ar": "الكتاب على الطاولة في الغرفة الكبيرة وهو جميل جدا، وأنا أحب القراءة كل يوم في المساء.",
    "bg": "Книгата е на масата в голямата стая и аз обичам да чета всеки ден, когато имам време за това.",
    "bn": "বইটি টেবিলের উপর আছে এবং আমি প্রতিদিন সন্ধ্যায় পড়তে ভালোবাসি।",
    "de": "Das Buch liegt auf dem Tisch, und ich lese jeden Abend darin, weil es mir sehr gut gefällt.",
    "en": "The book is on the table in the big room, and I like to read it every evening with my friends.",
    "es": "El libro está sobre la mesa de la habitación grande y me gusta leerlo todas las noches.",
    "fa": "کتاب روی میز در اتاق بزرگ است و من دوست دارم هر شب آن را بخوانم.",
    "fi": "Kirja on pöydällä suuressa huoneessa, ja minä luen sitä joka ilta, koska se on hyvin kaunis.",
    "fr": "Le livre est dans la grande pièce et nous aimons le lire tous les soirs.",
    "gu": "પુસ્તક ટેબલ પર છે અને મને દરરોજ સાંજે વાંચવું ગમે છે.",
    "he": "הספר נמצא על השולחן בחדר הגדול ואני אוהב לקרוא אותו כל ערב.",
    "hi": "किताब बड़े कमरे में मेज पर है और मुझे हर शाम इसे पढ़ना अच्छा लगता है।",
    "it": "Il libro è sul tavolo nella stanza e mi piace leggerlo ogni sera con gli amici della città.",
    "ja": "本は大きな部屋の机の上にあります。私は毎晩それを読むのが好きです。",
    "kn": "ಪುಸ್ತಕವು ಮೇಜಿನ ಮೇಲಿದೆ ಮತ್ತು ನಾನು ಪ್ರತಿದಿನ ಸಂಜೆ ಓದಲು ಇಷ್ಟಪಡುತ್ತೇನೆ.",
    "ko": "책은 큰 방의 책상 위에 있고 나는 매일 저녁 그것을 읽는 것을 좋아합니다.",
    "ml": "പുസ്തകം മേശപ്പുറത്തുണ്ട്, എല്ലാ വൈകുന്നേരവും വായിക്കാൻ എനിക്ക് ഇഷ്ടമാണ്.",
    "mr": "पुस्तक मोठ्या खोलीत टेबलावर आहे आणि मला दररोज संध्याकाळी ते वाचायला आवडते.",
    "ne": "किताब ठूलो कोठाको टेबलमा छ र मलाई हरेक साँझ पढ्न मन पर्छ।",
    "pa": "ਕਿਤਾਬ ਮੇਜ਼ ਉੱਤੇ ਹੈ ਅਤੇ ਮੈਨੂੰ ਹਰ ਸ਼ਾਮ ਪੜ੍ਹਨਾ ਚੰਗਾ ਲੱਗਦਾ ਹੈ।",
    "pl": "Książka leży na stole w dużym pokoju i lubię ją czytać każdego wieczoru, bo jest bardzo ciekawa.",
    "pt": "O livro está sobre a mesa na sala grande e eu gosto de ler todas as noites com os meus amigos.",
    "ru": "Книга лежит на столе в большой комнате, и я люблю читать её каждый вечер.",
    "sw": "Kitabu kiko juu ya meza katika chumba kikubwa na ninapenda kukisoma kila jioni.",
    "ta": "புத்தகம் மேசையின் மேல் உள்ளது, தினமும் மாலையில் படிக்க எனக்குப் பிடிக்கும்.",
    "te": "పుస్తకం బల్ల మీద ఉంది, ప్రతి సాయంత్రం చదవడం నాకు ఇష్టం.",
    "th": "หนังสืออยู่บนโต๊ะในห้องใหญ่ และฉันชอบอ่านทุกเย็น",
    "uk": "Книга лежить на столі у великій кімнаті, і я люблю читати її щовечора.",
    "ur": "کتاب بڑے کمرے میں میز پر ہے اور مجھے ہر شام اسے پڑھنا اچھا لگتا ہے۔",
    "vi": "Quyển sách ở trên bàn trong phòng lớn và tôi thích đọc nó mỗi buổi tối.",
}
"""One text in each of IFEval's languages."""
_BASE = BY_LANGUAGE["en"]
GENERAL = (
    "",
    " \n ",
    "Yes.",
    "12 34",
    _BASE,
    _BASE.upper(),
    _BASE.lower(),
    f'"{_BASE}"',
    f"“{_BASE}”",
    "Dr. Smith paid 3.5 dollars, e.g. for tea. Was it good? Yes! It was... very good. And so on.",
    "I like tea etc. The U.S. has none. J. Smith does not know it. Mr. Jones said: “Well!” He left.",
    "My answer is yes.",
    "Well, my answer is no. My answer is maybe.",
    "* one\n* two\n  * three\n- four\n** five **\n---\n*\n* six",
    "*one* and **two** and * * and ** ** and ***three***",
    "[name] and [address]\n[open\nclosed] [] [[x]]",
    "<<A title>>\nThe text.",
    "<< >> <<>>",
    "<<a> >",
    "Section 1\nOne thing.\nSection 2\nTwo things.\nSECTION 3 and section4",
    "One.\n***\nTwo.\n***\nThree.",
    "***\nOne.\n***\nTwo.\n***",
    "One.\n***\n***\nTwo.",
    "First answer.\n******\nSecond answer.",
    "Same.\n******\nSame.",
    "******\nOne.\n******\nTwo.\n******",
    '```json\n{"a": [1, 2, {"b": null}]}\n```',
    "[1, 2]",
    "{'a': 1}",
    "The end.\n\nP.S. I forgot. P.P.S. And that.",
    "p. s. small",
    "DON'T SHOUT, I'M HERE. NASA AND WELL-KNOWN U.S. WORDS OK",
    "One.\n\nTwo two.\n\n\n\nThree.\n\n",
    "it's 'quoted' \"words\", isn't it? (Yes, it is.) Then go: now!",
    "Line one\r\nLine two, with a comma\r\n",
)
"""Texts of all sorts."""


def texts_for(instruction_id: str, kwargs: dict[str, Any], prompt: str) -> Iterator[str]:
    """Texts near the edge of what the instruction asks for: passing ones and failing ones."""
    yield from GENERAL
    yield prompt
    yield f"{prompt}\n\n{_BASE}"
    n = max((value for value in kwargs.values() if isinstance(value, int)), default=2)
    for k in {0, 1, n - 1, n, n + 1, 2 * n}:
        yield from _counted(k, kwargs)
    for word in _words(kwargs):
        yield f"{_BASE} {word}"
        yield f"{word.upper()}, {_BASE} {word}s"
        yield f'{_BASE} "{word}"'
    if words := _words(kwargs):
        yield f"{' '.join(words)} {_BASE}"
        yield f"{_BASE}\n\n{' '.join(words * n)}"
    if instruction_id == "language:response_language":
        yield from BY_LANGUAGE.values()


def _words(kwargs: dict[str, Any]) -> list[str]:
    named = ("keyword", "first_word", "end_phrase", "letter", "postscript_marker", SECTION_WORD)
    found = [str(kwargs[name]) for name in named if kwargs.get(name)]
    return [*found, *(kwargs.get("keywords") or ()), *(kwargs.get("forbidden_words") or ())]


def _counted(k: int, kwargs: dict[str, Any]) -> Iterator[str]:
    words = _words(kwargs) or ["tea"]
    yield " ".join(["word"] * k)
    yield " ".join(["We drink tea."] * k)
    yield " ".join(words[:1] * k)
    yield "\n\n".join([f"{words[0].capitalize()} is here."] * k)
    yield "\n***\n".join(["We drink tea."] * k)
    yield "\n".join(["* tea"] * k)
    yield "\n".join(["- tea"] * k)
    yield " ".join(["*tea* or"] * k)
    yield " ".join(["[tea]"] * k)
    yield "\n".join(f"{words[0]} {j + 1}\nWe drink tea." for j in range(k))
    yield f"We drink {' '.join(['TEA'] * k)} today."
