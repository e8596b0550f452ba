"""Requests that nobody wrote by hand: from our own OpenAPI, and worse than it allows."""

import json
import warnings

import pytest
from http_worlds import running
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from strategies import awkward

from stages.serve.http.catalogue import Catalogue, read_entries
from stages.serve.http.problems import MEDIA_TYPE

MANY = settings(
    max_examples=100, deadline=None, derandomize=True, phases=[Phase.generate], database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@pytest.fixture(scope="module")
def open_service(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        with running(Catalogue(read_entries())) as service:
            yield service


@pytest.mark.parametrize("path", ["/search", "/answer"])
def test_200_malformed_requests_made_from_our_own_description_give_no_5xx(open_service, path):
    """100 to each route: schemathesis breaks what the description says."""
    schemathesis = pytest.importorskip("schemathesis")
    spec = open_service.client.get("/openapi.json").json()
    operation = schemathesis.openapi.from_dict(spec)[path]["POST"]
    seen = []

    @MANY
    @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def send(case):
        response = case.call(base_url=open_service.url, timeout=60)
        seen.append(response.status_code)
        assert response.status_code < 500, response.text
        if response.status_code >= 400:
            assert response.headers["content-type"] == [MEDIA_TYPE]
            assert response.json()["status"] == response.status_code

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        send()
    assert len(seen) >= 100 and sum(400 <= s < 500 for s in seen) >= 90
    assert open_service.client.get("/healthz").status_code == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | awkward,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(awkward, inner, max_size=3),
    max_leaves=6,
)
members = st.sampled_from(
    ["query", "k", "index", "question", "entry", "options", "max_tokens", "lookahead", "stream"]
)


@pytest.mark.parametrize("path", ["/search", "/answer"])
def test_bodies_of_any_bytes_and_values_give_no_5xx(open_service, path):
    @MANY
    @given(st.binary(max_size=300) | st.dictionaries(members, json_values, max_size=5))
    def send(body):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        said = open_service.client.post(
            path, content=raw, headers={"content-type": "application/json"}
        )
        assert said.status_code < 500, (raw, said.text)

    send()


@pytest.mark.parametrize(
    "raw",
    [
        b'{"query": "\\ud800"}', b'{"query": "a\\u0000b"}', b'{"query": ' + b"[" * 50_000,
        b'{"query": "x", "k": 1e999}', b'{"query": "x", "k": ' + b"9" * 5000 + b"}",
        b'{"query": "x", "query": 1}', b"\xff\xfe", b"null", b"[]", b'"query"', b"",
    ],
)  # fmt: skip
def test_json_at_its_edges_gives_no_5xx(open_service, raw):
    headers = {"content-type": "application/json"}
    said = open_service.client.post("/search", content=raw, headers=headers)
    assert said.status_code < 500, said.text
    for header in ({"content-type": "text/plain"}, {"content-type": "application/json; x"}, {}):
        assert open_service.client.post("/search", content=raw, headers=header).status_code < 500


@pytest.mark.parametrize("text", ["\u202eevil", "e\u0301" * 90, "\x00", " ", "東京" * 40])
def test_awkward_questions_are_answered(open_service, text):
    said = open_service.post("/answer", question=text, entry="read", stream=False)
    assert said.status_code == 200, said.text
    assert open_service.post("/search", query=text).status_code == 200
