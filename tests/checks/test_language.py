"""Which language a text is in: short answers in every language that a constraint offers."""

import pytest

from sao.checks import passes
from sao.checks.language import NAMES, likely, may_be
from sao.checks.style import LANGUAGES
from sao.records import Constraint

SHORT = {
    "de": (
        "Essen Sie jeden Tag frisches Obst.",
        "Gehen Sie jeden Morgen spazieren, am besten allein.",
        "Trinken Sie genug Wasser und schlafen Sie gut.",
        "Berlin bleibt Deutschlands größte Stadt.",
        "Kochen Sie Kartoffeln zwanzig Minuten lang in Salzwasser.",
        "Bienen sammeln Nektar aus vielen Blumen.",
        "Am Wochenende wandern wir gern in den Bergen.",
        "So war es schon immer, mein Freund.",
    ),
    "es": (
        "Coma fruta fresca todos los días.",
        "Beba mucha agua y duerma bien.",
        "Camine cada mañana, mejor a solas.",
        "Madrid es una ciudad grande y hermosa.",
        "Las abejas recogen néctar de muchas flores.",
        "Hierva las papas durante veinte minutos.",
        "Me gusta leer libros por la noche.",
        "Hable con su vecino antes de comprar.",
    ),
    "fr": (
        "Mangez des fruits frais chaque jour.",
        "Buvez beaucoup d'eau et dormez bien.",
        "Marchez tous les matins, de préférence seul.",
        "Paris reste une ville grande et belle.",
        "Les abeilles récoltent le nectar des fleurs.",
        "Faites bouillir les pommes de terre vingt minutes.",
        "J’aime lire des livres le soir.",
        "Parlez à votre voisin avant d’acheter.",
    ),
    "it": (
        "Mangiare frutta ogni giorno migliora la salute.",
        "Bevi molta acqua e dormi bene.",
        "Cammina ogni mattina, meglio da solo.",
        "Roma rimane una città grande e bella.",
        "Le api raccolgono il nettare dei fiori.",
        "Fai bollire le patate per venti minuti.",
        "Mi piace leggere libri la sera.",
        "Parla con il vicino prima di comprare.",
    ),
    "pt": (
        "Beba água e durma bem.",
        "Coma frutas frescas todos os dias.",
        "Caminhe todas as manhãs, de preferência sozinho.",
        "Lisboa é uma cidade grande e bonita.",
        "As abelhas recolhem o néctar das flores.",
        "Cozinhe as batatas durante vinte minutos.",
        "Gosto de ler livros à noite.",
        "Fale com o seu vizinho antes de comprar.",
    ),
    "en": (
        "Eat fresh fruit every single day.",
        "Drink enough water and sleep well.",
        "Take a walk each morning, best alone.",
        "Bees collect nectar from many flowers.",
        "Boil the potatoes for twenty minutes.",
        "A café near me has a good menu.",
        "No, do as I say: come on.",
        "Try walking alone before breakfast tomorrow.",
    ),
}


@pytest.mark.parametrize("code", SHORT)
def test_short_answers(code: str) -> None:
    for sentence in SHORT[code]:
        assert likely(sentence) == code, (sentence, likely(sentence))
        kept = {asked for asked in LANGUAGES if passes(sentence, Constraint("language", {"code": asked}))}
        assert kept == {code} & set(LANGUAGES), (sentence, kept)


def test_every_language_offered_has_short_answers() -> None:
    assert set(LANGUAGES) < set(SHORT) <= set(NAMES)


def test_a_tie_is_kept_and_no_sign_of_a_language_is_not() -> None:
    tie = "La casa de Carla, la sala."  # "la" and "de": Spanish and French
    assert {code for code in ("es", "fr") if may_be(tie, code)} == {"es", "fr"}
    assert not may_be(tie, "de")
    assert not may_be("Anna Berta Clara Dora Emil", "de")
    assert not may_be("12 34", "de")
    assert may_be("Привет, как дела?", "ru") and not may_be("Привет, как дела?", "de")
