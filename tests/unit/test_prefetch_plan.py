"""Lookahead: the order of copies, the budget, the room; what is warm, and what goes first."""

import numpy as np
import pytest

from stages.serve.prefetch.hotness import Hotness
from stages.serve.prefetch.plan import Plan, plan, rank_clusters, take_in_order

NONE = np.zeros(10, dtype=bool)
TENS = np.full(10, 10)


def planned(*lists, budget=10**9, resident=NONE, nbytes=TENS, **room) -> list[int]:
    return plan(np.array(lists), resident, nbytes, budget, **room).clusters.tolist()


# -- check 3 --------------------------------------------------------------------------------


def test_the_card_s_example_rank_by_rank_deduplicated_within_the_budget() -> None:
    """7 (rank 1 of the first), 2 (rank 1 of the second), 5; then 9 needs 10 of the 5 left."""
    assert planned([7, 2, 9], [2, 5, 7], budget=35) == [7, 2, 5]


def test_a_cluster_that_is_too_large_is_skipped_and_a_smaller_one_behind_it_is_taken() -> None:
    nbytes = np.array([10, 30, 10, 5, 10])
    assert planned([0, 1, 2, 3, 4], budget=25, nbytes=nbytes, resident=NONE[:5]) == [0, 2, 3]


def test_what_is_resident_costs_nothing_and_is_a_hit() -> None:
    resident = NONE.copy()
    resident[[7, 5]] = True
    wanted = plan(np.array([[7, 2, 9], [2, 5, 7]]), resident, TENS, 35)
    assert wanted.clusters.tolist() == [2, 9]
    assert wanted.hits.tolist() == [7, 2, 5, 7], "visits of 7, 2 (planned just before), 5 and 7"


def test_visits_behind_the_last_cluster_that_could_be_taken_are_no_hits() -> None:
    resident = NONE.copy()
    resident[[1, 3]] = True
    wanted = plan(np.array([[1, 0, 2, 3]]), resident, TENS, 10)
    assert (wanted.clusters.tolist(), wanted.hits.tolist()) == ([0], [1]), "2 was refused"


def test_room_in_pages_limits_as_the_budget_does() -> None:
    pages = np.array([1, 3, 1, 1])
    sizes, none = np.full(4, 10), NONE[:4]
    assert planned([0, 1, 2, 3], nbytes=sizes, resident=none, pages=pages, room=3) == [0, 2, 3]
    assert planned([0, 1, 2, 3], nbytes=sizes, resident=none, pages=pages, room=0) == []


def test_a_budget_of_nothing_and_no_queries_plan_nothing() -> None:
    assert planned([7, 2, 9], budget=0) == []
    empty = plan(np.empty((0, 5), dtype=np.int64), NONE, TENS, 100)
    assert isinstance(empty, Plan) and len(empty.clusters) == len(empty.hits) == 0


def test_ranks_are_by_inner_product() -> None:
    centroids = np.eye(3, dtype="f4")
    queries = np.array([[0.1, 0.9, 0.5], [3, 1, 2]], dtype="f4")
    assert rank_clusters(queries, centroids, 2).tolist() == [[1, 2], [0, 2]]


def slowly(costs: np.ndarray, limits: np.ndarray) -> list[int]:
    """One item after another."""
    left, taken = limits.copy(), []
    for i, cost in enumerate(costs.T):
        if (cost <= left).all():
            left, taken = left - cost, [*taken, i]
    return taken


@pytest.mark.parametrize("seed", range(30))
def test_runs_of_items_are_taken_as_one_after_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 12, (2, 60))
    limits = rng.integers(0, 200, 2)
    assert take_in_order(costs, limits).tolist() == slowly(costs, limits)


def test_a_plan_of_a_thousand_ranks_takes_few_turns() -> None:
    """Equal sizes: one run fits, the rest is dropped at once."""

    class Counted(np.ndarray):
        turns = 0

        def __getitem__(self, key):
            Counted.turns += isinstance(key, tuple) and isinstance(key[0], slice)
            return np.asarray(self)[key]

    costs = np.full((1, 8192), 10).view(Counted)
    assert len(take_in_order(costs, np.array([3005]))) == 300
    assert Counted.turns < 8


# -- check 5: hotness -----------------------------------------------------------------------


def test_a_cluster_hit_in_two_rounds_is_warmer_than_one_that_is_not() -> None:
    hot = Hotness(4)
    hot.start_round()
    hot.add(np.array([1, 2]))
    assert hot.values.tolist() == [0, 1024, 1024, 0]
    hot.start_round()
    hot.hit(np.array([1]))
    assert hot.values.tolist() == [0, 1024 / 2 + 1024, 512, 0]
    hot.start_round()
    hot.hit(np.array([1, 3]))
    assert hot.values.tolist() == [0, 1792, 256, 0], "3 is not resident: no hit"


def test_the_coldest_go_until_the_rest_takes_what_it_may() -> None:
    hot = Hotness(4)
    hot.add(np.array([0, 1, 2, 3]))
    hot.start_round()
    hot.hit(np.array([2, 2, 0]))
    pages = np.array([2, 1, 3, 4])
    assert hot.coldest(pages, 10).tolist() == []
    assert hot.coldest(pages, 9).tolist() == [3], "of the two coldest, the larger number"
    assert hot.coldest(pages, 6).tolist() == [3]
    assert hot.coldest(pages, 5).tolist() == [3, 1]
    assert hot.coldest(pages, 4).tolist() == [3, 1, 0], "2 was hit twice and goes last"
    assert hot.coldest(pages, 0).tolist() == [3, 1, 0, 2]
    hot.drop(np.array([3, 1]))
    assert hot.values.tolist() == [512 + 1024, 0, 512 + 2048, 0]
    assert hot.coldest(pages, 4).tolist() == [0]


def test_nothing_resident_has_nothing_to_evict() -> None:
    assert Hotness(3).coldest(np.ones(3, dtype=int), 0).tolist() == []
    assert Hotness(0).coldest(np.ones(0, dtype=int), 0).tolist() == []
