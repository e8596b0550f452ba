"""Clients that stop reading, without a network: ``send`` is the test's."""

import asyncio

import pytest

from stages.serve.http import events
from stages.serve.http.catalogue import Catalogue
from stages.serve.http.events import Answer
from stages.serve.http.guard import Gate
from stages.serve.http.limits import Limits
from stages.serve.http.metrics import Metrics


def test_a_client_that_stops_reading_gives_its_place_back_and_its_question_is_cancelled(
    monkeypatch,
):
    monkeypatch.setattr(events, "STALLED", 0.01)
    limits = Limits()
    gate = Gate(1, "answers", limits, Metrics(Catalogue({})))
    cancelled = []

    async def job(emit):
        emit("start", {})
        assert gate.inside == 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def never(*_):
        await asyncio.Event().wait()

    async def live():
        answer = Answer(job, gate, stream=True)
        await asyncio.wait_for(answer({"type": "http"}, never, never), 60)

    asyncio.run(live())
    assert gate.inside == 0 and cancelled == [True]


@pytest.mark.parametrize("turns", range(8))
def test_a_client_that_leaves_while_an_event_is_on_its_way_is_noticed(turns):
    gate = Gate(1, "answers", Limits(), Metrics(Catalogue({})))
    cancelled = []

    async def live():
        leaving = asyncio.Event()

        async def job(emit):
            try:
                await asyncio.sleep(0.01)  # the answer waits for its event
                leaving.set()
                for _ in range(turns):
                    await asyncio.sleep(0)
                emit("token", {})
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

        async def leaves():
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def reads(_):
            pass

        answer = Answer(job, gate, stream=True)
        async with asyncio.timeout(10) as patience:
            await answer({"type": "http"}, leaves, reads)
        assert not patience.expired()

    asyncio.run(live())
    assert gate.inside == 0 and cancelled == [True]
