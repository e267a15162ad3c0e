"""Smoke test of a platform: readiness, the model list, and an answer of the model and of each running variant."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

URL, MODEL = os.environ["SMOKE_TEST_URL"], os.environ["SMOKE_TEST_MODEL"]
KEY = os.environ.get("SMOKE_TEST_KEY", "").strip()
END = time.monotonic() + float(os.environ["SMOKE_TEST_WITHIN_S"])
STARTING = (0, 200, 404, 429, 502, 503, 504)  # no route yet, no replica yet, too busy: retried


def fetch(path, body=None):
    """The status and the text of an answer; status 0 where nobody answers."""
    headers = {"content-type": "application/json", **({"authorization": "Bearer " + KEY} if KEY else {})}
    request = urllib.request.Request(URL + path, body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=max(1, END - time.monotonic())) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def check(what, path, right, body=None):
    """The first right answer. Ends the process where there is none and, in the time that is left, will be none."""
    while True:
        status, text = fetch(path, body)
        if status == 200 and right(text):
            sys.stdout.write(f"ok: {what}\n")
            sys.stdout.flush()
            return text
        if status not in STARTING or time.monotonic() > END:
            sys.exit(f"{what}: status {status}: {text[:500]}")
        time.sleep(2)


def models(text):
    """What the platform says it has."""
    return [model["id"] for model in json.loads(text)["data"]]


def content(text):
    """What was answered."""
    return (json.loads(text)["choices"][0]["message"]["content"] or "").strip()


check("is ready", "/readyz", lambda text: True)
check("has the model", "/v1/models", lambda text: MODEL in models(text))
messages = [{"role": "user", "content": "What is the capital of France?"}]
for name in [MODEL, *(f"{MODEL}:{variant}" for variant in os.environ["SMOKE_TEST_VARIANTS"].split())]:
    question = {"model": name, "messages": messages, "max_tokens": 24, "temperature": 0}
    answer = content(check(f"{name} answers", "/v1/chat/completions", content, question))
    sys.stdout.write(f"    {answer}\n")
