"""A seeded synthetic world: people, companies and towns, and questions whose chains are known.

Ours, after the small-scale reproductions of multi-hop papers, none of which publishes its own:
what trains on chains of facts (the aligner of KiRAG, the judge of RFM-RAG) needs questions with
exact supporting facts in their order, and a test in which no chain of training is seen again.

Every entity has one document of 4 to 8 facts, each a sentence by a template that can be read
back. A name has two words, made of syllables by the seed; the family name is shared with other
people, with companies and with towns, so that a name's word alone does not find a document.
Relations with a single value lead from entity to entity:

    bridge       "In which year was the mayor of the town where Tavi Morel was born born?"
                 2 or 3 hops; the entities between are never named in the question
    comparison   "Who was born earlier, A or B?": one fact of each
    single       one fact: a control that iterating must not improve

Splits: a step from a fact to the next one, (entity, relation, relation), is of train, dev or test
by hash, and a bridge question belongs to a split if all its steps do. So a test question shares no
chain with a training question, not even a part of two facts. ``meta`` of a question is its type,
the number of hops and its chain; ``meta`` of a document is its triples; relevant to a question are
the documents of its chain. All of it is a function of the entry's values.
"""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, NonNegativeInt

from stages.digest import digest, uniform
from stages.errors import QuarryError
from stages.ingest import world_words as words
from stages.ingest.lines import canonical_json
from stages.ingest.source import Judgement, Question, Raw, Source, SourceParams
from stages.ingest.world_words import COMPARED, GOODS, LANGUAGES, PLACES, RELATIONS, TRADES
from stages.params import Entry
from stages.records import RecordStore

Kind = Literal["person", "company", "town"]
Split = Literal["train", "dev", "test"]

# Types of question by hops, and their share of a split's questions; the last takes what is left.
TYPES = {("single", 1): 0.15, ("comparison", 2): 0.25, ("bridge", 3): 0.2, ("bridge", 2): 0.4}


class Questions(Entry):
    """How many questions a split has."""

    train: NonNegativeInt = 2000
    dev: NonNegativeInt = 300
    test: NonNegativeInt = 300


class Params(SourceParams):
    """An entry with ``source: world``; ``path`` is data/none, there is nothing to read."""

    entities: Annotated[int, Field(ge=40, le=20_000)] = 600
    questions: Questions = Questions()
    seed: int


class Fact(NamedTuple):
    """What one document says in one sentence."""

    docid: str
    subj: str
    rel: str
    obj: str


class Asked(NamedTuple):
    """A question before it has an id."""

    type: str
    text: str
    answer: str
    chain: tuple[Fact, ...]


class World:
    """Entities by kind, their facts, and which of these can be asked for."""

    def __init__(self, entities: int, seed: int) -> None:
        rng = random.Random(seed)
        self.seed = seed
        self.names = make_names(entities, rng)
        every = list(itertools.chain.from_iterable(self.names.values()))
        self.docids = {name: f"e{n:05}" for n, name in enumerate(rng.sample(every, len(every)))}
        self.facts = make_facts(self.names, self.docids, rng)
        self.asked = {
            name: {f.rel: f for f in facts if RELATIONS[f.rel].asked}
            for name, facts in self.facts.items()
        }

    def say(self, wordings: Sequence[str], *about: str) -> str:
        """One of several wordings, by hash of what it is about."""
        u = uniform("wording", str(self.seed), *about)
        return wordings[int(u * len(wordings))]


def read(path: Path, params: Params, store: RecordStore) -> Source:
    """The world of these values; ``path`` is not looked at.

    Raises:
        QuarryError: so few entities have fewer questions than are wanted.
    """
    world = World(params.entities, params.seed)
    questions: list[Question] = []
    judgements: list[Judgement] = []
    for split, n in params.questions.model_dump().items():
        for at, one in enumerate(ask(world, split, n)):
            qid = f"{split}-{at:05}"
            meta = {
                "type": one.type, "hops": len(one.chain), "chain": [f._asdict() for f in one.chain],
            }  # fmt: skip
            questions.append(
                Question(qid, one.text, split, qid, (one.answer,), meta=canonical_json(meta))
            )
            docids = dict.fromkeys(f.docid for f in one.chain)
            judgements += [Judgement(qid, docid, 1, qid) for docid in docids]
    return Source(documents(world), questions, judgements)


# -- entities and facts --------------------------------------------------------------------------


def make_names(entities: int, rng: random.Random) -> dict[Kind, list[str]]:
    """Names by kind: half people, a quarter towns (both even numbers), the rest companies.

    There is a family name for every five entities, and each is given in turn: everybody shares
    theirs.
    """
    n_people, n_towns = entities // 4 * 2, entities // 8 * 2
    families = make_words(max(4, entities // 5), rng, 2)
    first = make_words(max(8, n_people // 6), rng, 2, unlike=families)
    forms: dict[Kind, list[str]] = {
        "person": [f"{name} {{}}" for name in first],
        "town": list(PLACES),
        "company": [f"{{}} {trade}" for trade in TRADES],
    }
    counts = {"person": n_people, "town": n_towns, "company": entities - n_people - n_towns}
    turns = itertools.cycle(families)
    names: dict[Kind, list[str]] = {kind: [] for kind in forms}
    for kind, count in counts.items():
        taken: set[str] = set()
        for family in itertools.islice(turns, count):
            free = [name for form in forms[kind] if (name := form.format(family)) not in taken]
            names[kind].append(rng.choice(free))
            taken.add(names[kind][-1])
    return names


def make_words(
    n: int, rng: random.Random, syllables: int, *, unlike: Sequence[str] = ()
) -> list[str]:
    """n distinct capitalised words of so many syllables and a consonant, none of ``unlike``."""
    made: dict[str, None] = {}
    while len(made) < n:
        body = "".join(
            rng.choice(words.ONSETS) + rng.choice(words.VOWELS) for _ in range(syllables)
        )
        word = (body + rng.choice(words.CODAS)).capitalize()
        if word not in unlike:
            made[word] = None
    return list(made)


def make_facts(
    names: Mapping[Kind, Sequence[str]], docids: Mapping[str, str], rng: random.Random
) -> dict[str, list[Fact]]:
    """The facts of every entity, in the order in which its document tells them."""
    people, towns, companies = names["person"], names["town"], names["company"]
    spouse, twin = pair_up(people, rng), pair_up(towns, rng)
    said: dict[str, list[tuple[str, str]]] = {}
    for name in people:
        teachers = [p for p in rng.sample(people, 3) if p not in (name, spouse[name])]
        said[name] = [
            ("born in", rng.choice(towns)), ("works for", rng.choice(companies)),
            ("married to", spouse[name]), ("studied under", teachers[0]),
            ("year of birth", str(rng.randint(1850, 1999))),
            *(("speaks", language) for language in rng.sample(LANGUAGES, rng.randint(0, 3))),
        ]  # fmt: skip
    for name in companies:
        said[name] = [
            ("based in", rng.choice(towns)), ("founded by", rng.choice(people)),
            ("year of foundation", str(rng.randint(1700, 1999))),
            *(("known for", good) for good in rng.sample(GOODS, rng.randint(1, 4))),
        ]  # fmt: skip
    for name in towns:
        said[name] = [
            ("mayor", rng.choice(people)), ("twinned with", twin[name]),
            ("founded by", rng.choice(people)),
            ("year of foundation", str(rng.randint(1100, 1899))),
            *(("known for", good) for good in rng.sample(GOODS, rng.randint(0, 4))),
        ]  # fmt: skip
    return {
        name: [Fact(docids[name], name, *fact) for fact in rng.sample(facts, len(facts))]
        for name, facts in said.items()
    }


def pair_up(names: Sequence[str], rng: random.Random) -> dict[str, str]:
    """Everybody's partner, in pairs."""
    order = rng.sample(names, len(names))
    pairs = list(zip(order[::2], order[1::2], strict=True))
    return dict(pairs) | {b: a for a, b in pairs}


def documents(world: World) -> Iterator[Raw]:
    """One document an entity, by docid: its name, its facts as sentences and as triples."""
    for name, docid in sorted(world.docids.items(), key=lambda item: item[1]):
        facts = world.facts[name]
        sentences = [world.say(RELATIONS[f.rel].told, *f).format(s=f.subj, o=f.obj) for f in facts]
        meta = {"triples": [[f.subj, f.rel, f.obj] for f in facts]}
        yield Raw(docid, name, " ".join(sentences), docid, canonical_json(meta))


# -- questions -----------------------------------------------------------------------------------


def ask(world: World, split: Split, n: int) -> list[Asked]:
    """n questions of a split, the types mixed.

    Raises:
        QuarryError: the world has not so many of some type.
    """
    found: list[Asked] = []
    for at, ((kind, hops), share) in enumerate(TYPES.items()):
        wanted = round(n * share) if at < len(TYPES) - 1 else n - len(found)
        if kind == "comparison":
            some = list(itertools.islice(compare(world, split, tries=100 * wanted), wanted))
        else:
            chains = [c for c in walk(world, hops) if split_of(world, c) == split]
            chains.sort(key=lambda chain: digest("chain", str(world.seed), *_links(chain)))
            some = [phrase(world, kind, chain) for chain in chains[:wanted]]
        if len(some) < wanted:
            raise QuarryError(
                f"ingest: a world of {len(world.docids)} entities has {len(some)} {kind} questions "
                f"of {hops} facts in split {split}, {wanted} are wanted. Raise entities, or lower "
                f"questions.{split}."
            )
        found += some
    return sorted(found, key=lambda one: digest("order", str(world.seed), one.type, one.text))


def walk(world: World, hops: int) -> Iterator[tuple[Fact, ...]]:
    """Every chain of so many facts from one entity to the next; no name comes twice."""
    chains: Iterator[tuple[Fact, ...]] = ((f,) for fs in world.asked.values() for f in fs.values())
    for _ in range(hops - 1):
        chains = (
            (*chain, fact)
            for chain in chains
            for fact in world.asked.get(chain[-1].obj, {}).values()
            if fact.obj not in {f.subj for f in chain}
        )
    return chains


def _links(chain: Sequence[Fact]) -> tuple[str, ...]:
    """What a question of this chain names: where it starts, and its relations."""
    return (chain[0].subj, *(f.rel for f in chain))


def split_of(world: World, chain: Sequence[Fact]) -> Split | None:
    """The split of all steps of a chain; None where they differ. A single fact is its own step."""
    steps = [_links(two) for two in itertools.pairwise(chain)] or [_links(chain)]
    splits = {_share(world, *step) for step in steps}
    return splits.pop() if len(splits) == 1 else None


def _share(world: World, *what: str) -> Split:
    u = uniform("split", str(world.seed), *what)
    return "train" if u < 0.7 else "dev" if u < 0.85 else "test"


def phrase(world: World, kind: str, chain: tuple[Fact, ...]) -> Asked:
    """The question for the last object of a chain, which it names by its first subject."""
    about = chain[0].subj
    for n, fact in enumerate(chain[:-1]):
        about = world.say(RELATIONS[fact.rel].spoken, *_links(chain), str(n)).format(s=about)
    text = world.say(RELATIONS[chain[-1].rel].asked, *_links(chain)).format(s=about)
    return Asked(kind, text, chain[-1].obj, chain)


def compare(world: World, split: Split, *, tries: int) -> Iterator[Asked]:
    """Comparisons by year of two entities of one kind, each pair once, of so many drawn."""
    rng = random.Random(f"{world.seed} {split}")
    kinds = list(world.names.values())
    seen: set[frozenset[str]] = set()
    for _ in range(tries):
        a, b = rng.sample(rng.choice(kinds), 2)
        later = rng.random() < 0.5
        rel = "year of birth" if "year of birth" in world.asked[a] else "year of foundation"
        chain = world.asked[a][rel], world.asked[b][rel]
        pair = frozenset((a, b))
        of_split = _share(world, *sorted(pair)) == split
        if pair in seen or not of_split or chain[0].obj == chain[1].obj:
            continue
        seen.add(pair)
        text = world.say(COMPARED[rel][later], a, b).format(a=a, b=b)
        first, last = sorted(chain, key=lambda f: int(f.obj))
        yield Asked("comparison", text, (last if later else first).subj, chain)
