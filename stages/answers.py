"""Short answers against gold answers: exact match and token F1 with SQuAD's normalisation.

Rajpurkar et al., SQuAD: 100,000+ Questions for Machine Comprehension of Text, EMNLP 2016
(the official evaluation script, v1.1 for the text, v2.0 for empty answers). An answer is
compared with every gold answer and the best value counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation, without a/an/the, words one space apart."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals a normalised gold answer, else 0.0.

    No gold answers give 0.0.
    """
    return float(normalise(prediction) in {normalise(gold) for gold in golds})


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """The best harmonic mean of token precision and recall over the gold answers.

    Tokens are words after normalisation, counted with multiplicity. If one side has no token
    the value is 1.0 when both have none, else 0.0. No gold answers give 0.0.
    """
    words = normalise(prediction).split()
    return max((_f1(words, normalise(gold).split()) for gold in golds), default=0.0)


def _f1(prediction: list[str], gold: list[str]) -> float:
    if not prediction or not gold:
        return float(prediction == gold)
    common = (Counter(prediction) & Counter(gold)).total()
    return 2 * common / (len(prediction) + len(gold))  # = 2PR / (P + R); 0 if nothing is shared
