"""Quarry's eight rooms and the kernels they share.

A room is a package that runs as ``python -m stages.<room> <entry>``; ``dvc.yaml`` has one
block for each. Kernels are the modules beside the rooms: nouns that two rooms or more need.
Rooms import kernels and the contract (``tables``, ``types``, ``params``), never each other;
the one door is ``stages.index.open_index``. ``tests/unit/test_house.py`` holds this true.
"""
