"""Static files of `/ui` as the gateway serves them, without a browser."""

import http.client
from pathlib import Path

import pytest

from serve.gateway.auth import hash_key
from serve.gateway.static_pages import page_routes
from tests.support.answers import error_of
from tests.support.gateway_server import Start, Started

FOLDER = Path(__file__).parents[3] / "serve/gateway/ui"
DOCS = ["/docs", *(f"/docs/{name}" for name in ("start.js", "swagger-ui-bundle.js", "swagger-ui.css"))]
PATHS = ["/ui", *(f"/ui/{file.name}" for file in FOLDER.iterdir() if file.name != "index.html")]
TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


def raw(gateway: Started, method: str, target: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """A request whose path nobody tidied up before it was sent."""
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=10)
    connection.putrequest(method, target, skip_accept_encoding=True)
    for name, value in (headers or {}).items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


def test_every_file_of_the_folders_has_a_path():
    assert set(page_routes()) == {*PATHS, "/ui/", *DOCS, "/docs/"}


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_served_as_what_it_is(gateway: Started, path):
    response = gateway.http.get(path)
    name = "index.html" if path == "/ui" else path.removeprefix("/ui/")
    assert response.status_code == 200
    assert response.content == (FOLDER / name).read_bytes()
    assert response.headers["content-type"].split(";")[0] == TYPES[name.rpartition(".")[2]]
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", PATHS)
def test_the_policy_allows_nothing_inline_and_nothing_from_elsewhere(gateway: Started, path):
    policy = dict(
        rule.strip().split(" ", 1) for rule in gateway.http.get(path).headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in str(policy)


@pytest.mark.parametrize("path", PATHS + DOCS)
def test_an_unchanged_file_is_not_sent_again(gateway: Started, path):
    etag = gateway.http.get(path).headers["etag"]
    assert etag.startswith('"')
    for known in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        again = gateway.http.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert gateway.http.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_files_have_etags_of_their_own(gateway: Started):
    assert len({gateway.http.get(path).headers["etag"] for path in PATHS}) == len(PATHS)


@pytest.mark.parametrize("path", PATHS + DOCS)
def test_head_is_get_without_the_body(gateway: Started, path):
    head, get = gateway.http.head(path), gateway.http.get(path)
    assert (head.status_code, head.content) == (200, b"")
    ignored = {"date", "server"}
    headers = [{name: value for name, value in each.headers.items() if name not in ignored} for each in (head, get)]
    assert headers[0] == headers[1]


def test_a_slash_at_the_end_leads_to_the_page_behind_any_prefix(gateway: Started):
    response = gateway.http.get("/ui/")
    assert (response.status_code, response.headers["location"]) == (308, "../ui")
    assert gateway.http.get("/ui/", follow_redirects=True).content == (FOLDER / "index.html").read_bytes()
    assert gateway.http.get("/docs/", follow_redirects=True).content == gateway.http.get("/docs").content


@pytest.mark.parametrize(
    "path",
    ["/ui/nothing.js", "/ui/index.html", "/ui/app.js/", "/ui/APP.JS", "/uix", "/ui//app.js", "/ui/.", "/ui/app.py"],
)
def test_an_unknown_file_is_404_in_the_platforms_shape(gateway: Started, path):
    assert raw(gateway, "GET", path)[0] == 404
    assert error_of(gateway.http.get("/ui/nothing.js"), 404)["code"] == "not_found"


@pytest.mark.parametrize(
    "target",
    [
        "/ui/../app.py", "/ui/../../pyproject.toml", "/ui/%2e%2e/app.py", "/ui/%2e%2e%2fapp.py", "/ui/..%2fapp.py",
        "/ui/%252e%252e/app.py", "/ui//etc/passwd", "/ui/%2fetc%2fpasswd", "/ui/..\\app.py", "/ui/app.js%00.html",
        "/ui/../pages.py", "/../etc/passwd",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_folder(gateway: Started, target):
    status, body = raw(gateway, "GET", target)
    assert status in (400, 404)
    assert b"import" not in body and b"root:" not in body


@pytest.mark.parametrize("path", ["/ui", "/ui/", "/ui/app.js"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"])
def test_other_methods_are_405(gateway: Started, path, method):
    response = gateway.http.request(method, path)
    assert error_of(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "GET, HEAD, OPTIONS"


def test_the_page_needs_no_key_but_what_it_asks_for_does(start_gateway: Start):
    key = {"sha256": hash_key("gbx-alice"), "tenant": "alice"}
    gateway = start_gateway(access={"keys": [key]})
    for path in PATHS:
        response = gateway.http.get(path)
        assert response.status_code == 200
        assert key["sha256"].encode() not in response.content and b"alice" not in response.content
    for path in ("/v1/models", "/v1/variants"):
        assert gateway.http.get(path).status_code == 401
    assert gateway.post("/v1/route", {}).status_code == 401


def test_the_page_names_no_other_host_and_makes_no_markup_of_text():
    for file in FOLDER.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert "http://" not in text and "https://" not in text and "//cdn" not in text
        for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert sink not in text, f"{file.name}: {sink}"
    page = (FOLDER / "index.html").read_text()
    assert "<style" not in page and " style=" not in page and " onclick=" not in page
