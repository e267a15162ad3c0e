"""The retrieval service with a missing collection, or a failing component, embedder or store."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from deployments.embedder import IDENTITY_FILE
from deployments.retrieval import RetrievalDeployment, RetrievalHandle, await_response
from serve.config.retrieval import RetrievalConfig
from serve.errors import RequestError, retrieval_misconfigured
from serve.retrieval.pipelines import PipelineError
from serve.retrieval.service import BUNDLED, Service
from serve.retrieval.store.calibrations import Calibration
from serve.retrieval.store.postgres import Hit, IndexedDocument, Owner, Store, StoreUnavailable
from serve.retrieval.verify.scorer import DEFAULT_THRESHOLD
from tests.unit.gateway.test_embeddings import tokenizer_at, words

SECRET = "Who pays for Larkhaven?"


class FakeStore:
    """A store with one collection."""

    def __init__(self) -> None:
        self.hits = [
            Hit("a.md", "A", 0, "Ada Quist pays for Larkhaven.", "", None, {}, 0.5, np.eye(1, 4, dtype=np.float32)[0])
        ]
        self.opening: Exception | None = None
        self.opened = 0
        self.calibrated: dict[Owner, Calibration] = {}
        self.searched = ""

    async def open(self) -> None:
        self.opened += 1
        if self.opening:
            raise self.opening

    async def close(self) -> None: ...

    async def exists(self, owner: Owner) -> bool:
        return owner == Owner("acme", "docs")

    async def list_documents(self, owner: Owner, after: str, limit: int) -> list[IndexedDocument]:
        here = IndexedDocument(1, "a.md", "A", 1, 1, b"", "", {}, 0.0)
        return [here][:limit] if await self.exists(owner) and after < here.name else []

    async def delete(self, owner: Owner, name: str | None) -> int:
        return int(await self.exists(owner) and name in (None, "a.md"))

    async def calibration(self, owner: Owner) -> Calibration | None:
        return self.calibrated.get(owner)

    async def set_calibration(self, owner: Owner, *row: Any) -> Calibration | None:
        if await self.exists(owner):
            self.calibrated[owner] = Calibration(*row, 1.0)
        return self.calibrated.get(owner)

    async def delete_calibration(self, owner: Owner) -> bool:
        return self.calibrated.pop(owner, None) is not None

    async def vector_search(self, owner: Owner, *_: Any) -> list[Hit]:
        return self.hits if await self.exists(owner) else []

    async def keyword_search(self, owner: Owner, text: str, *_: Any) -> list[Hit]:
        self.searched = text
        return await self.vector_search(owner)


async def embed(texts: Any) -> Any:
    return np.ones((len(texts), 4), np.float32) / 2


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FakeStore:
    store = FakeStore()
    monkeypatch.setattr("serve.retrieval.service.Store", lambda *_: store)
    return store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of an embedder."""
    tokenizer_at(tmp_path)
    return tmp_path


def service(folder: Path, **config: Any) -> Service:
    return Service(RetrievalConfig(**config), "", embed, 4, folder / "tokenizer.json", "m")


def find(service: Service, **more: Any) -> Any:
    request = {"tenant": "acme", "collection": "docs", "question": SECRET, "top_k": 2, "mode": "hybrid", **more}
    return service.call("ground", request)


async def refusal(work: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await work
    return caught.value


async def test_an_answer_is_checked_against_titles_and_headings_too(store, folder):
    request = {"answer": "The P-220 weighs 12 kg.", "passages": ["It weighs 12 kg."]}
    (bare,) = await service(folder).call("check", request)
    (headed,) = await service(folder).call("check", {**request, "heads": ["P-220"]})
    assert bare["score"] < headed["score"] and headed["source"] == 1


async def test_a_question_is_composed_like_the_documents(store, folder):
    await find(service(folder), question="Who pays for Zu\u0308rich?")
    assert store.searched == "Who pays for Z\u00fcrich?"


class TestCollections:
    @pytest.mark.parametrize("more", [{"collection": "gone"}, {"tenant": "other"}])
    async def test_a_missing_one_and_another_tenants_look_the_same(self, store, folder, more):
        error = await refusal(find(service(folder), **more))
        name = more.get("collection", "docs")
        assert (error.status, error.code, error.message) == (
            404,
            "collection_not_found",
            f"collection '{name}' does not exist",
        )

    @pytest.mark.parametrize("more", [{"collection": "gone"}, {"collection": ""}, {"tenant": "other"}])
    @pytest.mark.parametrize(
        ("method", "arguments"),
        [("documents", {"after": "", "limit": 2}), ("delete", {"source": None}), ("delete", {"source": "a.md"})],
    )
    async def test_a_missing_one_is_404_for_its_documents_too(self, store, folder, more, method, arguments):
        request = {"tenant": "acme", "collection": "docs", **more, **arguments}
        error = await refusal(service(folder).call(method, request))
        assert (error.status, error.code, error.param) == (404, "collection_not_found", "collection")

    async def test_a_missing_document_of_one_that_exists_is_404(self, store, folder):
        request = {"tenant": "acme", "collection": "docs"}
        error = await refusal(service(folder).call("delete", {**request, "source": "gone.md"}))
        assert (error.status, error.code, error.param) == (404, "document_not_found", "source")
        assert await service(folder).call("delete", {**request, "source": "a.md"}) == 1
        assert await service(folder).call("documents", {**request, "after": "a.md", "limit": 2}) == []

    async def test_one_in_which_nothing_is_found_exists(self, store, folder):
        assert (await find(service(folder)))["passages"]
        assert (await find(service(folder), min_score=1.0))["passages"] == []
        assert await service(folder).call("exists", {"tenant": "acme", "collection": "docs"}) is True
        assert await service(folder).call("exists", {"tenant": "other", "collection": "docs"}) is False


class TestCalibration:
    SCORES = (0.9, *(0.3 + i / 100 for i in range(19)))

    async def test_a_collection_has_the_default_until_it_is_calibrated_and_after_it_was_deleted(self, store, folder):
        retrieval, request = service(folder), {"tenant": "acme", "collection": "docs"}
        default = await retrieval.call("calibration", request)
        assert (default["threshold"], default["rate"], default["questions"]) == (DEFAULT_THRESHOLD, 0.05, None)
        stored = await retrieval.call("calibrate", {**request, "scores": self.SCORES, "rate": 0.1})
        assert (stored["threshold"], stored["rate"], stored["questions"]) == (0.31, 0.1, 20)
        assert await retrieval.call("calibration", request) == stored
        assert await retrieval.call("delete_calibration", request) == default

    async def test_one_for_another_embedder_does_not_count(self, store, folder):
        retrieval, request = service(folder), {"tenant": "acme", "collection": "docs"}
        await retrieval.call("calibrate", {**request, "scores": self.SCORES, "rate": 0.1})
        other = Service(RetrievalConfig(), "", embed, 4, folder / "tokenizer.json", "another embedder")
        assert (await other.call("calibration", request))["questions"] is None

    @pytest.mark.parametrize("more", [{"collection": "gone"}, {"tenant": "other"}])
    @pytest.mark.parametrize("method", ["calibration", "calibrate", "delete_calibration"])
    async def test_a_missing_collection_and_another_tenants_are_404(self, store, folder, more, method):
        request = {"tenant": "acme", "collection": "docs", **more}
        if method == "calibrate":
            request |= {"scores": self.SCORES, "rate": 0.1}
        error = await refusal(service(folder).call(method, request))
        assert (error.status, error.code) == (404, "collection_not_found")

    async def test_too_few_questions_leave_the_calibration_as_it_was(self, store, folder):
        request = {"tenant": "acme", "collection": "docs", "scores": self.SCORES[:18], "rate": 0.05}
        error = await refusal(service(folder).call("calibrate", request))
        assert (error.status, error.code, error.param) == (422, "too_few_questions", "scores")
        assert "at least 19" in error.message
        assert store.calibrated == {}


class TestSearch:
    """A search without an answer: what the guard lets through is not cut again for a prompt."""

    QUESTION = "Who built the Zorblat?"
    TEXTS = (
        "The Zorblat was built by Ada Quist.", "The Zorblat is painted green.", "The Zorblat stands in Larkhaven.",
        "Tea is served at four.", "The tide tables are printed in ink.",
    )  # fmt: skip

    @pytest.fixture
    def search(self, store, folder):
        def hit(text: str, cosine: float) -> Hit:
            vector = np.array([cosine, np.sqrt(1 - cosine**2), 0, 0], np.float32)
            return Hit(f"{text[-9:]}.md", "", 0, text, "", None, {}, cosine, vector)

        async def unit(texts: Any) -> Any:
            return np.array([[1, 0, 0, 0] if "Zorblat" in text else [0, 0, 1, 0] for text in texts], np.float32)

        store.hits = [hit(text, 0.75 if "Zorblat" in text else 0.05) for text in self.TEXTS]
        retrieval = Service(RetrievalConfig(), "", unit, 4, folder / "tokenizer.json", "m")

        async def search(question: str = self.QUESTION, **more: Any) -> Any:
            request = {
                "tenant": "acme",
                "collection": "docs",
                "question": question,
                "top_k": 20,
                "mode": "hybrid",
                **more,
            }
            return await retrieval.call("search", request)

        return search

    async def test_all_passages_with_the_requested_support_are_returned(self, search):
        found = await search(min_score=0.0)
        assert [one["n"] for one in found["passages"]] == [1, 2, 3, 4, 5]
        assert {one["content"] for one in found["passages"]} == set(self.TEXTS)
        assert all(one["quote"] for one in found["passages"])
        scores = sorted((one["score"] for one in found["passages"]), reverse=True)
        for top_k, min_score in ((2, 0.0), (20, scores[2])):
            cut = (await search(top_k=top_k, min_score=min_score))["passages"]
            assert len(cut) == min(top_k, sum(score >= min_score for score in scores))

    async def test_it_is_supported_where_a_passage_has_the_threshold_whatever_is_returned(self, search):
        assert (await search(min_score=0.0))["supported"]
        nothing = await search("What is quantum chromodynamics?", min_score=0.0)
        assert (len(nothing["passages"]), nothing["supported"]) == (5, False)
        assert not (await search(min_score=1.0))["supported"], "nothing is returned"


def own_pipeline(at: Path, module: str, code: str) -> dict[str, Any]:
    """The configuration of a mode with a component of the operator's own between the search and the guard."""
    document = yaml.safe_load((BUNDLED / "dense.yaml").read_text())
    document["components"]["ranker"] = {"type": f"{module}.Ranker", "init_parameters": {}}
    for link in document["connections"]:
        if link["receiver"] == "guard.documents":
            link["receiver"] = "ranker.documents"
    document["connections"].append({"sender": "ranker.documents", "receiver": "guard.documents"})
    (at / "pipelines").mkdir()
    (at / "pipelines/own.yaml").write_text(yaml.safe_dump(document))
    (at / f"{module}.py").write_text(
        "import httpx\nfrom haystack import Document, component\n\n@component\nclass Ranker:\n"
        "    @component.output_types(documents=list[Document])\n"
        f"    def run(self, documents: list[Document], question: str):\n        {code}\n"
    )
    return {"pipelines": at / "pipelines", "allowed_modules": (module,)}


class TestPipelines:
    @pytest.mark.parametrize(
        ("code", "status", "kind"),
        [
            ("raise ValueError(question)", 500, "ValueError"), ("return documents[5]", 500, "IndexError"),
            ("return {'documents': [Document(content='x', embedding=[1.0] * 4)]}", 500, "KeyError"), ("return 5", 500, ""),
            ("return {'documents': 5}", 500, ""), ("raise httpx.ConnectError('no route')", 503, ""),
            ("raise TimeoutError", 503, ""), ("raise ConnectionRefusedError", 503, ""),
            ("httpx.Response(502, request=httpx.Request('GET', 'http://x')).raise_for_status()", 503, ""),
            ("httpx.Response(401, request=httpx.Request('GET', 'http://x')).raise_for_status()", 500, "HTTPStatusError"),
        ],
    )  # fmt: skip
    async def test_a_broken_component_is_no_reason_to_try_again_and_one_whose_service_is_away_is(
        self, store, folder, monkeypatch, caplog, request, code, status, kind
    ):
        module = f"ranker_{abs(hash(request.node.name))}"
        monkeypatch.syspath_prepend(str(folder))
        own = service(folder, **own_pipeline(folder, module, code))
        with caplog.at_level(logging.INFO):
            error = await refusal(find(own, mode="own"))
        assert (error.status, error.code) == (
            status,
            "retrieval_misconfigured" if status == 500 else "retrieval_unavailable",
        )
        assert "'own'" in error.message and kind in error.message
        assert ("retry-after" in error.headers) == (status == 503)
        assert ("x-should-retry" in error.headers) == (status == 500), "OpenAI's clients would try again"
        assert SECRET not in error.message + caplog.text
        assert "'own'" in caplog.text
        assert (await find(own, mode="hybrid"))["passages"], "other modes go on"

    def test_one_that_cannot_load_what_it_needs_fails_at_start(self, store, folder, monkeypatch):
        monkeypatch.syspath_prepend(str(folder))
        code = "return {}\n    def warm_up(self):\n        raise OSError('no such model: reranker-9')"
        config = own_pipeline(folder, "ranker_cold", code)
        with pytest.raises(PipelineError, match=r"own\.yaml: no such model: reranker-9"):
            service(folder, **config)


class Handle:
    """A deployment's handle whose calls do `work`."""

    def __init__(self, work: Any) -> None:
        self.work = work
        self.calls: list[Any] = []

    def remote(self, *arguments: Any) -> Any:
        self.calls.append(arguments)
        return Response(self.work(*arguments))


class Response:
    def __init__(self, work: Any) -> None:
        self.work, self.cancelled = work, False

    def __await__(self) -> Any:
        return self.work.__await__()

    def cancel(self) -> None:
        self.cancelled = True


async def vectors(ids: Any) -> Any:
    return np.array([(list(one) + [0] * 4)[:4] for one in ids], np.float32)


async def deployment(folder: Path, handle: Any) -> RetrievalDeployment:
    made = RetrievalDeployment.__new__(RetrievalDeployment)
    (folder / IDENTITY_FILE).write_text("m")
    await made.__init__({}, "host=nowhere", str(folder), handle)  # type: ignore[misc]  # as Serve does
    return made


class TestDeployment:
    async def test_texts_are_embedded_a_few_at_a_time_as_they_are_read(self, store, folder):
        handle = Handle(vectors)
        one = await deployment(folder, handle)
        made = (await one("embed", {"texts": [words(i) for i in range(20)]}))["result"]
        assert made["vectors"].tolist() == [[1, i + 3, 2, 0] for i in range(20)] and made["tokens"] == 60
        assert [len(ids) for (ids,) in handle.calls] == [8, 8, 4]

    @pytest.mark.parametrize(
        ("more", "code"),
        [
            ({"texts": ["w1", words(*range(20))]}, "context_length_exceeded"), ({"dimensions": 5}, "invalid_dimensions"),
            ({"truncate": 100}, "invalid_field"),
        ],
    )  # fmt: skip
    async def test_what_cannot_be_embedded_is_refused_before_anything_is(self, store, folder, more, code):
        handle = Handle(vectors)
        refused = (await (await deployment(folder, handle))("embed", {"texts": ["w1"], **more}))["error"]
        assert (refused["status"], refused["code"]) == (400, code)
        assert handle.calls == []

    async def test_a_store_that_is_misconfigured_fails_the_start_and_one_that_is_away_does_not(self, store, folder):
        store.opening = StoreUnavailable()
        one = await deployment(folder, Handle(vectors))
        request = {"tenant": "acme", "collection": "docs"}
        assert (await one("exists", request))["error"]["code"] == "store_unavailable"
        store.opening = retrieval_misconfigured("made for 8 dimensions")
        refused = (await one("exists", request))["error"]
        assert (refused["status"], refused["code"]) == (500, "retrieval_misconfigured")
        with pytest.raises(RequestError, match="made for 8 dimensions"):
            await deployment(folder, Handle(vectors))
        store.opening = None
        assert (await one("exists", request))["result"] is True

    async def test_a_search_while_the_embedder_is_away_can_be_tried_again(self, store, folder):
        async def away(ids: Any) -> Any:
            raise ActorDiedError

        one = await deployment(folder, Handle(away))
        request = {"tenant": "acme", "collection": "docs", "question": "w1", "top_k": 2, "mode": "hybrid"}
        refused = (await one("search", request))["error"]
        assert (refused["status"], refused["code"]) == (503, "retrieval_unavailable")

    async def test_an_unexpected_exception_is_an_answer_and_a_line_without_its_message(
        self, store, folder, monkeypatch, caplog
    ):
        """If it left the replica, Serve would log it as a whole."""
        one = await deployment(folder, Handle(vectors))

        async def broken(**_: Any) -> None:
            raise LookupError(SECRET)

        monkeypatch.setattr(one._service, "exists", broken)
        refused = (await one("exists", {"tenant": "acme", "collection": "docs"}))["error"]
        assert (refused["status"], refused["code"]) == (500, "retrieval_failed")
        assert "LookupError" in refused["message"] and "retrieval failed: LookupError at" in caplog.text
        assert SECRET not in str(refused) + caplog.text


class TestHandle:
    @pytest.mark.parametrize(
        ("raised", "status", "code"),
        [
            (ActorDiedError(), 503, "retrieval_unavailable"), (BackPressureError(1, 1), 429, "overloaded"),
            (DeploymentUnavailableError(DeploymentID("retrieval", "retrieval")), 500, "retrieval_misconfigured"),
            (RayTaskError("f", SECRET, KeyError(SECRET)), 500, "retrieval_failed"),
        ],
    )  # fmt: skip
    async def test_only_what_may_come_back_is_worth_another_try(self, caplog, raised, status, code):
        async def fail(*_: Any) -> Any:
            raise raised

        handle = RetrievalHandle(enabled=True)
        handle._handle = Handle(fail)  # type: ignore[assignment]
        error = await refusal(handle.call("search"))
        assert (error.status, error.code) == (status, code)
        assert SECRET not in error.message + caplog.text

    async def test_a_call_that_is_given_up_ends_there_too(self):
        response = Response(asyncio.sleep(10))
        task = asyncio.create_task(await_response(response, "retrieval"))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert response.cancelled


def test_an_invalid_connection_string_is_not_shown(monkeypatch):
    async def open_() -> None:
        await Store("host=x password=s3cret word", 4).open()

    with pytest.raises(RequestError) as caught:
        asyncio.run(open_())
    assert caught.value.code == "retrieval_misconfigured"
    assert "s3cret" not in caught.value.message and "word" not in caught.value.message.replace("password", "")
