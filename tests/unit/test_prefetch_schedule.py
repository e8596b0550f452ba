"""Check 9: micro-batches of like requests, and which device takes which."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prefetch_worlds import unit_rows

from stages.errors import QuarryError
from stages.serve.prefetch.schedule import arrival_batches, assign, micro_batches, overlap


def topics(n_topics: int, each: int, seed: int = 1, noise: float = 0.05) -> np.ndarray:
    """Requests about topics, taking turns: neighbours in arrival have nothing in common."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(n_topics, 16, rng)
    rows = np.tile(centres, (each, 1)) + noise * rng.standard_normal((n_topics * each, 16))
    return rows.astype("f4")


def test_requests_about_one_topic_go_together() -> None:
    groups = micro_batches(topics(5, 4), 4)
    assert sorted(groups) == [[t, t + 5, t + 10, t + 15] for t in range(5)]


def test_the_seed_is_the_request_with_the_largest_summed_similarity() -> None:
    """Angles 0, 10, 20 and 90 degrees: the sums of 10 degrees are the largest; 0 and 20 tie."""
    angles = np.radians([90, 0, 10, 20])
    queries = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("f4")
    assert micro_batches(queries, 2) == [[1, 2], [0, 3]] or micro_batches(queries, 2) == [
        [2, 3],
        [0, 1],
    ]
    sums = (queries @ queries.T).sum(1)
    assert int(np.argmax(sums)) in micro_batches(queries, 2)[0]


def test_the_last_group_may_be_smaller_and_no_requests_have_no_groups() -> None:
    assert [len(g) for g in micro_batches(topics(5, 2, noise=0.3), 4)] == [4, 4, 2]
    assert micro_batches(np.empty((0, 4), "f4")) == []
    assert micro_batches(np.zeros((3, 4), "f4"), 2), "vectors of zeros are no trouble"
    assert arrival_batches(5, 2) == [[0, 1], [2, 3], [4]]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 6), st.integers(0, 99))
def test_every_request_is_in_one_group_and_equal_ones_share_theirs(who, g, seed) -> None:
    texts = unit_rows(7, 8, np.random.default_rng(seed))
    groups = micro_batches(texts[who].reshape(-1, 8), g)
    assert sorted(r for group in groups for r in group) == list(range(len(who)))
    assert all(0 < len(group) <= g for group in groups)
    for text in set(who):
        own = [i for i, t in enumerate(who) if t == text]
        holding = sum(bool(set(own) & set(group)) for group in groups)
        assert holding == -(-len(own) // g), "one group, or as few as have room for them"


# -- devices --------------------------------------------------------------------------------


def test_overlap_counts_distinct_clusters_that_a_device_has() -> None:
    cached = np.zeros((2, 6), dtype=bool)
    cached[0, [1, 2]], cached[1, [2, 5]] = True, True
    shared = overlap([np.array([1, 1, 2]), np.array([[5, 2], [0, 2]])], cached)
    assert shared.tolist() == [[2, 1], [1, 2]]
    assert overlap([], cached).shape == (0, 2)


def test_most_overlap_goes_first_and_ties_to_the_lower_batch_then_device() -> None:
    assert assign(np.array([[1, 3], [2, 3], [0, 0], [0, 0]])) == [[2, 3], [0, 1]]
    assert assign(np.zeros((4, 2), dtype=int)) == [[0, 1], [2, 3]]
    assert assign(np.array([[5, 5]])) == [[0], []], "independent rows"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 12), st.integers(1, 5), st.integers(0, 99))
def test_assignment_keeps_quotas_and_gives_every_batch_once(m, j, seed) -> None:
    shared = np.random.default_rng(seed).integers(0, 4, (m, j))
    devices = assign(shared)
    assert len(devices) == j and len({id(d) for d in devices}) == j
    assert sorted(b for own in devices for b in own) == list(range(m))
    assert max(map(len, devices)) <= -(-m // j)
    if m == j:
        assert all(len(own) == 1 for own in devices)


def test_quotas_without_room_are_refused() -> None:
    with pytest.raises(QuarryError, match="5 micro-batches do not go on 2 devices.*quota of 3"):
        assign(np.zeros((5, 2), dtype=int), quota=2)


def cold_reads(rounds: list[np.ndarray], needs, group, route) -> int:
    """Simulated devices, each with a cache of the clusters of its last micro-batches."""
    cached, reads = np.zeros((3, 60), dtype=bool), 0
    for queries in rounds:
        batches = group(queries)
        wanted = [np.unique(needs(queries[b])) for b in batches]
        for device, own in enumerate(route(overlap(wanted, cached))):
            fresh = np.zeros(60, dtype=bool)
            for b in own:
                reads += int((~cached[device, wanted[b]] & ~fresh[wanted[b]]).sum())
                fresh[wanted[b]] = True
            cached[device] = fresh
    return reads


def test_grouping_and_routing_each_save_reads_on_simulated_devices() -> None:
    rng = np.random.default_rng(3)
    centroids = unit_rows(60, 16, rng)
    base, rounds = topics(6, 4, seed=4, noise=0.1), []
    for _ in range(12):  # 4 of 6 topics, mixed
        now = np.concatenate([np.arange(t, 24, 6) for t in rng.choice(6, 4, replace=False)])
        rounds.append(base[rng.permutation(now)])

    def needs(queries: np.ndarray) -> np.ndarray:
        return np.argsort(-queries @ centroids.T, axis=1)[:, :6]

    def turns(shared: np.ndarray) -> list[list[int]]:
        return [list(range(j, len(shared), 3)) for j in range(3)]

    naive = cold_reads(rounds, needs, lambda q: arrival_batches(len(q)), turns)
    grouped = cold_reads(rounds, needs, micro_batches, turns)
    routed = cold_reads(rounds, needs, micro_batches, assign)
    assert routed < grouped < naive
