"""CT-MCTS: a language model as its own retriever, walking token by token inside the corpus.

Kim & Kim, FREESON: Retriever-Free Retrieval-Augmented Reasoning via Corpus-Traversing MCTS, arXiv
2505.16409; no code was released. A node is a prefix that occurs in the corpus; its children are
continuations of G tokens, drawn by a stochastic beam search that may only take tokens that occur
there (the index of kind suffixes says which). A value is what the head on the model's last hidden
state makes of a prefix, or without a head how likely the model finds it.

Reading order: walk.py (the values of a walk), tree.py (nodes, UCT, back-propagation, ranking),
beam.py (stochastic beam search), search.py (all trees in lock-step), seal.py (the other ranking),
retriever.py (the search as a ``Retriever``).
"""
