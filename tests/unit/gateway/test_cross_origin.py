"""Anonymous access is limited to programs on the machine: cross-origin requests from web pages are rejected."""

import httpx
import pytest

from benchmarks.lib.sample_catalog import MODEL
from serve.config.sections import AccessConfig, ServerConfig
from serve.errors import RequestError
from serve.gateway.auth import Gatekeeper, hash_key
from serve.gateway.cross_origin import CrossOriginProtection
from tests.support.answers import EVERY_PATH, MESSAGES, error_of, streamed_or_not
from tests.support.gateway_server import Start, Started, bearer

CHAT = {"model": MODEL, "messages": MESSAGES}
ACTIONS = {(method, path) for path, method in EVERY_PATH.items() if path.startswith("/v1/")} | {
    ("GET", "/v1/models/smollm2-135m"),
    ("HEAD", "/v1/models"),
    ("GET", "/v1/documents"),
    ("POST", "/v1/documents"),
    ("DELETE", "/v1/documents"),
}
every_action = pytest.mark.parametrize(("method", "path"), sorted(ACTIONS))


def verdict(headers: dict[str, str], **server: object) -> str | None:
    """The code that a request without a key is refused with."""
    try:
        CrossOriginProtection(ServerConfig.model_validate(server)).check(headers)
    except RequestError as error:
        assert (error.status, error.param) == {
            "host_not_allowed": (403, "host"),
            "origin_not_allowed": (403, "origin"),
            "unsupported_media_type": (415, "content-type"),
        }[error.code or ""]
        return error.code
    return None


class TestHosts:
    @pytest.mark.parametrize(
        "host",
        ["localhost", "localhost:8000", "LOCALHOST:8000", "localhost.", "app.localhost:8000", "127.0.0.1:8000",
         "127.1.2.3", "[::1]:8000", "[::1]", "10.0.3.7:8000", "[fd00::7]:8000", "0.0.0.0:8000", ""],
    )  # fmt: skip
    def test_loopback_and_addresses_name_this_platform(self, host):
        assert verdict({"host": host}) is None

    def test_a_client_of_http_1_0_names_no_host(self):
        assert verdict({}) is None

    @pytest.mark.parametrize(
        "host",
        ["evil.example", "evil.example:8000", "localhost.evil.example", "localhostevil", "evil.example.", "127.0.0.1.nip.io",
         "localhost@evil.example", "evil.example#localhost", "evil.example?.localhost/", "[::1].evil.example", "[::1",
         "[evil.example]:8000", "2130706433", "0x7f.1", "127.1", ".", ":8000", " ", "[]", "..localhost.evil",
         "gearbox", "\xe9vil.example", "localhost, evil.example"],
    )  # fmt: skip
    def test_any_other_name_may_have_been_rebound(self, host):
        assert verdict({"host": host}) == "host_not_allowed"

    def test_the_configured_host_and_those_that_are_allowed_name_it_too(self):
        names = {"host": "box.lan", "allowed_hosts": ["gearbox", "*.ai.example"]}
        for host in ("box.lan:8000", "gearbox:8000", "a.ai.example", "b.a.ai.example:1", "localhost"):
            assert verdict({"host": host}, **names) is None
        for host in ("ai.example", "xai.example", "gearbox.lan", "box.lan.evil.example"):
            assert verdict({"host": host}, **names) == "host_not_allowed"

    def test_any_host_can_be_allowed(self):
        assert verdict({"host": "what.ever"}, allowed_hosts=["*"]) is None

    @every_action
    def test_every_path_that_wants_a_key_elsewhere_is_refused_to_a_rebound_name(self, gateway: Started, method, path):
        response = gateway.http.request(method, path, headers={"host": "evil.example:8000"})
        assert response.status_code == 403
        if method != "HEAD":
            error = error_of(response, 403)
            assert (error["code"], error["type"]) == ("host_not_allowed", "permission_error")
            assert "evil.example:8000" in error["message"] and "server.allowed_hosts" in error["message"]
        assert gateway.engine_calls() == {}

    def test_a_rebound_page_is_refused_although_it_is_of_its_own_origin(self, gateway: Started):
        headers = {"host": "evil.example:8000", "origin": "http://evil.example:8000", "sec-fetch-site": "same-origin"}
        assert error_of(gateway.post("/v1/chat/completions", CHAT, headers), 403)["code"] == "host_not_allowed"

    def test_probes_and_the_page_answer_whatever_they_are_called(self, gateway: Started):
        for path in ("/healthz", "/readyz", "/ui", "/ui/app.js"):
            assert gateway.http.get(path, headers={"host": "evil.example"}).status_code == 200

    @pytest.mark.parametrize("key", ["sk-any", "none"])
    def test_a_key_that_nobody_knows_is_none(self, gateway: Started, key):
        """A rebound page can send any header."""
        response = gateway.post("/v1/chat/completions", CHAT, {"host": "evil.example", **bearer(key)})
        assert error_of(response, 403)["code"] == "host_not_allowed"

    @pytest.mark.parametrize("open_", [True, False])
    def test_a_known_key_is_no_ambient_authority(self, start_gateway: Start, open_):
        key = {"sha256": hash_key("gbx-mine"), "tenant": "me"}
        gateway = start_gateway(access={"allow_anonymous": open_, "keys": [key]})
        headers = {"host": "evil.example", "origin": "https://evil.example", **bearer("gbx-mine")}
        assert gateway.post("/v1/chat/completions", CHAT, headers).status_code == 200


class TestOrigins:
    @every_action
    @pytest.mark.parametrize("origin", ["https://evil.example", "null"])
    def test_a_page_of_another_origin_is_refused(self, gateway: Started, method, path, origin):
        response = gateway.http.request(method, path, headers={"origin": origin})
        assert response.status_code == 403
        if method != "HEAD":
            assert error_of(response, 403)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in response.headers
        assert gateway.engine_calls() == {}

    @pytest.mark.parametrize(
        "origin",
        ["http://localhost:3000", "http://localhost", "https://localhost:8000.evil.example", "null", "", "localhost:8000",
         "file://", "chrome-extension://abc", "http://evil.example/localhost:8000", "http://127.0.0.1:8000"],
    )  # fmt: skip
    def test_only_the_same_host_and_port_is_the_same_origin(self, origin):
        assert verdict({"host": "localhost:8000", "origin": origin}) == "origin_not_allowed"

    @pytest.mark.parametrize("origin", ["http://localhost:8000", "https://localhost:8000", "HTTP://LocalHost:8000"])
    def test_the_platforms_own_page_may_ask(self, origin):
        assert verdict({"host": "localhost:8000", "origin": origin, "sec-fetch-site": "same-origin"}) is None

    def test_an_origin_without_a_host_is_foreign(self):
        assert verdict({"origin": "http://"}) == "origin_not_allowed"

    @pytest.mark.parametrize("site", ["cross-site", "same-site", "something new"])
    def test_what_a_page_loads_without_an_origin_is_refused_too(self, site):
        assert (
            verdict({"host": "localhost", "sec-fetch-site": site, "sec-fetch-mode": "no-cors"}) == "origin_not_allowed"
        )

    @pytest.mark.parametrize("site", ["none", "same-origin"])
    def test_what_the_user_or_the_platforms_page_opens_passes(self, site):
        assert verdict({"host": "localhost", "sec-fetch-site": site}) is None

    def test_following_a_link_passes(self):
        assert verdict({"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}) is None

    def test_a_form_of_another_site_navigates_but_has_an_origin(self):
        headers = {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert verdict({**headers, "origin": "https://evil.example"}) == "origin_not_allowed"

    def test_allowed_origins_pass(self):
        for allowed in ("https://app.example", "*"):
            headers = {"host": "localhost", "origin": "https://app.example", "sec-fetch-site": "cross-site"}
            assert verdict(headers, allowed_origins=[allowed]) is None
        assert verdict({"host": "localhost", "origin": "https://b.example"}, allowed_origins=["https://app.example"])


class TestBodies:
    @pytest.mark.parametrize("length", [{"content-length": "2"}, {"transfer-encoding": "chunked"}])
    @pytest.mark.parametrize(
        "content_type",
        ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonp",
         "text/plain; application/json", "application/json, text/plain", "text/plain;charset=UTF-8", "application/x+json"],
    )  # fmt: skip
    def test_a_body_that_a_page_can_send_without_asking_is_415(self, length, content_type):
        headers = {"host": "localhost", **length, **({"content-type": content_type} if content_type else {})}
        assert verdict(headers) == "unsupported_media_type"

    @pytest.mark.parametrize(
        "content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"]
    )
    def test_json_passes(self, content_type):
        assert verdict({"host": "localhost", "content-length": "2", "content-type": content_type}) is None

    def test_without_a_body_there_is_nothing_to_declare(self):
        assert verdict({"host": "localhost", "content-length": "0"}) is None

    def test_the_error_for_a_missing_header_names_the_header(self, gateway: Started):
        response = gateway.http.post("/v1/chat/completions", data={"{}": ""})
        error = error_of(response, 415)
        assert error["code"] == "unsupported_media_type"
        assert "'Content-Type: application/json'" in error["message"]
        assert "application/x-www-form-urlencoded" in error["message"]

    def test_with_a_known_key_the_type_does_not_matter(self):
        access = AccessConfig.model_validate(
            {"allow_anonymous": True, "keys": [{"sha256": hash_key("k"), "tenant": "me"}]}
        )
        headers = {**bearer("k"), "content-length": "2", "content-type": "text/plain"}
        assert Gatekeeper(access).authenticate(headers).tenant == "me"


class TestCors:
    ORIGIN = "https://app.example"

    @pytest.fixture
    def shared(self, start_gateway: Start) -> Started:
        key = {"sha256": hash_key("gbx-mine"), "tenant": "me"}
        return start_gateway(server={"allowed_origins": [self.ORIGIN]}, access={"keys": [key]})

    def preflight(self, gateway: Started, origin: str, path: str = "/v1/chat/completions") -> httpx.Response:
        headers = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,x-gearbox-max-cost,x-stainless-os",
        }
        return gateway.http.options(path, headers=headers)

    def test_it_is_off_by_default(self, gateway: Started):
        for response in (
            self.preflight(gateway, self.ORIGIN),
            gateway.http.get("/healthz", headers={"origin": "x://y"}),
        ):
            assert not [name for name in response.headers if name.startswith("access-control-")]

    def test_a_preflight_of_an_allowed_origin_allows_its_headers(self, shared: Started):
        response = self.preflight(shared, self.ORIGIN)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == self.ORIGIN
        assert "POST" in response.headers["access-control-allow-methods"]
        assert "authorization" in response.headers["access-control-allow-headers"]
        assert "x-gearbox-max-cost" in response.headers["access-control-allow-headers"]
        assert "Origin" in response.headers["vary"]
        assert "access-control-allow-credentials" not in response.headers

    @pytest.mark.parametrize(
        "origin", ["https://evil.example", "https://app.example.evil", "null", "https://app.example:1"]
    )
    def test_another_origin_is_allowed_nothing(self, shared: Started, origin):
        for response in (self.preflight(shared, origin), shared.http.get("/v1/models", headers={"origin": origin})):
            assert "access-control-allow-origin" not in response.headers

    @streamed_or_not
    def test_a_page_reads_the_answer_and_its_headers(self, shared: Started, stream):
        headers = {"origin": self.ORIGIN, **bearer("gbx-mine")}
        response = shared.chat(headers=headers, stream=stream)
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == self.ORIGIN
        assert response.headers["access-control-expose-headers"] == "*"
        assert response.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in response.headers

    def test_a_page_reads_errors_too(self, shared: Started):
        response = shared.http.get("/v1/models", headers={"origin": self.ORIGIN})
        assert error_of(response, 401)["code"] == "missing_api_key"
        assert response.headers["access-control-allow-origin"] == self.ORIGIN

    def test_caches_tell_origins_apart_also_where_there_is_none(self, shared: Started):
        assert shared.http.get("/healthz").headers["vary"] == "Origin"

    def test_any_origin_gets_no_credentials(self, start_gateway: Start):
        gateway = start_gateway(server={"allowed_origins": ["*"]})
        response = gateway.chat(headers={"origin": "https://any.example"})
        assert response.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [("allowed_hosts", "https://a.example"), ("allowed_hosts", "a.example:80"), ("allowed_hosts", "a*.example"),
     ("allowed_hosts", ""), ("allowed_hosts", "A.example"), ("allowed_origins", "app.example"),
     ("allowed_origins", "https://app.example/"), ("allowed_origins", "null"), ("allowed_origins", "https://*.example")],
)  # fmt: skip
def test_what_no_header_could_say_is_refused_in_the_configuration(name, value):
    with pytest.raises(ValueError, match=name):
        ServerConfig.model_validate({name: [value]})
