"""The words of the made world (``world``): how its twelve relations are told, asked and spoken of.

A sentence of ``told`` fits no other template, so that a document can be read back; a relation has
two wordings or more wherever it appears, and few of them share a content word with its name.
"""

from typing import NamedTuple


class Relation(NamedTuple):
    """How a relation is told, asked and spoken of; {s} and {o} are names."""

    told: tuple[str, ...]  # sentences
    asked: tuple[str, ...] = ()  # questions for its object; none: it has several, and is not asked
    spoken: tuple[str, ...] = ()  # the object in other words; none: it is no entity


# fmt: off
RELATIONS = {
    "born in": Relation(
        ("{s} was born in {o}.", "The birthplace of {s} is {o}.", "{s} is a native of {o}."),
        ("Where was {s} born?", "In which town was {s} born?"),
        ("the birthplace of {s}", "the town where {s} was born"),
    ),
    "works for": Relation(
        ("{s} works for {o}.", "{s} is on the payroll of {o}.", "The employer of {s} is {o}."),
        ("Who employs {s}?", "Which company does {s} work for?"),
        ("the employer of {s}", "the company that {s} works for"),
    ),
    "married to": Relation(
        ("{s} is married to {o}.", "The spouse of {s} is {o}."),
        ("Who is {s} married to?", "Who is the spouse of {s}?"),
        ("the spouse of {s}", "the person married to {s}"),
    ),
    "studied under": Relation(
        ("{s} studied under {o}.", "{s} was a pupil of {o}.", "The teacher of {s} was {o}."),
        ("Who taught {s}?", "Whose pupil was {s}?"),
        ("the teacher of {s}", "the person who taught {s}"),
    ),
    "year of birth": Relation(
        ("The year of birth of {s} is {o}.", "{s} came into the world in {o}."),
        ("In which year was {s} born?", "What is the year of birth of {s}?"),
    ),
    "speaks": Relation(("{s} speaks {o}.", "{s} is fluent in {o}.")),
    "based in": Relation(
        ("{s} is based in {o}.", "The head office of {s} stands in {o}."),
        ("Where is {s} based?", "In which town is the head office of {s}?"),
        ("the home town of {s}", "the town where {s} has its head office"),
    ),
    "founded by": Relation(
        ("{s} was founded by {o}.", "The founder of {s} was {o}.", "{s} goes back to {o}."),
        ("Who founded {s}?", "Who was the founder of {s}?"),
        ("the founder of {s}", "the person who founded {s}"),
    ),
    "year of foundation": Relation(
        ("{s} was set up in {o}.", "The year of foundation of {s} is {o}."),
        ("In which year was {s} founded?", "What is the year of foundation of {s}?"),
    ),
    "mayor": Relation(
        ("The mayor of {s} is {o}.", "{s} is governed by {o}."),
        ("Who is the mayor of {s}?", "Who governs {s}?"),
        ("the mayor of {s}", "the person who governs {s}"),
    ),
    "twinned with": Relation(
        ("{s} is twinned with {o}.", "The twin town of {s} is {o}."),
        ("Which town is twinned with {s}?", "What is the twin town of {s}?"),
        ("the twin town of {s}", "the town twinned with {s}"),
    ),
    "known for": Relation(("{s} is known for {o}.", "{s} owes its good name to {o}.")),
}
COMPARED = {  # by year: wordings for the earlier and for the later one
    "year of birth": (
        ("Who was born earlier, {a} or {b}?", "Which of {a} and {b} is older?"),
        ("Who was born later, {a} or {b}?", "Which of {a} and {b} is younger?"),
    ),
    "year of foundation": (
        ("Which was founded earlier, {a} or {b}?", "Which of {a} and {b} is older?"),
        ("Which was founded later, {a} or {b}?", "Which of {a} and {b} is younger?"),
    ),
}
ONSETS, VOWELS, CODAS = "bdfghklmnprstvz", "aeiou", "lmnrstx"
LANGUAGES = ("Auric", "Belan", "Corvish", "Dalic", "Elmese", "Fenric", "Galdish", "Hestian")
GOODS = (
    "amber", "bells", "bicycles", "books", "cheese", "clocks", "glass", "gloves", "kites",
    "lamps", "maps", "organs", "paper", "pottery", "ropes", "salt", "silk", "tea", "tiles", "wine",
)
TRADES = (
    "Textiles", "Foundry", "Shipyard", "Brewery", "Press", "Railways", "Instruments", "Mills",
    "Optics", "Chemicals", "Bank", "Motors",
)
PLACES = (
    "Port {}", "{} Bay", "Upper {}", "Lower {}", "{} Bridge", "Mount {}", "{} Falls", "New {}",
    "Old {}", "{} Heath", "East {}", "West {}",
)
# fmt: on
