"""The values of a search by walking: the paper's where it gives them."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from stages.params import Entry


class Walk(Entry):
    """How a query's tree grows."""

    simulations: PositiveInt = 32  # S; selections of a node to expand or to visit again
    granularity: PositiveInt = 6  # G, tokens of a level
    depth: PositiveInt = 16  # levels, so up to 96 tokens
    width: PositiveInt = 2  # M, children of a node
    exploration: NonNegativeFloat = 0.5  # lambda of UCT; ours, the paper's is not known
    temperature: PositiveFloat = 1.0  # of the model, over the tokens that may follow
    stop_count: NonNegativeInt = (
        1  # occurrences at which a prefix names its passages, and ends; ours
    )
    max_occ: PositiveInt = 50  # occurrences at which a prefix still speaks for its passages; ours
    # What a passage is ranked by: the best mean value of a node that speaks for it (ours, the paper
    # is silent), or SEAL's weights of all prefixes of the tree (``seal.py``).
    doc_score: Literal["maxq", "seal"] = "maxq"
    candidates: PositiveInt = 256  # likeliest tokens that are looked up where very many may follow
    # A node gets M more children once it has N >= widen · children^2 visits, or when all that it
    # has are terminal (progressive widening: Coulom, 2007). Ours; 0: never, as published: then in a
    # small corpus, where six tokens name a passage, the first two passages are all that is found.
    widen: NonNegativeFloat = 1.0
    # A prefix that names its passages is valued by them: so many tokens from their beginnings, read
    # in one pass. Ours; 0: by its own last token.
    verify_tokens: NonNegativeInt = 96
    # Read for one query: its prompt, the tokens of its tree, passages. No tree of the values above
    # comes near it; what a tree that is cut here has found is ranked.
    max_tokens: PositiveInt = 16_384
    query_tokens: PositiveInt = 256  # of a query; a longer one is cut
    trees: PositiveInt = 16  # that grow together; no result depends on it
    leaves: PositiveInt = Field(1, le=64)  # of a tree that are expanded together; 1: as published

    @property
    def expansion_tokens(self) -> int:
        """The most that one expansion reads."""
        return self.width * (self.granularity + self.stop_count * self.verify_tokens)
