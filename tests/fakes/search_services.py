"""SearXNG, Brave and DuckDuckGo as they answer, errors too; sources stand beside each answer."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

KEY = "BSA-test-0123456789"

# docs.searxng.org/dev/search_api.html and searx/webutils.py (get_json_response): the keys of the
# answer; results carry those of searx/result_types.
SEARXNG = {
    "query": "q", "number_of_results": 0,
    "results": [
        {"url": "https://a.example/one", "title": "One <b>bold</b>", "content": "First extract",
         "engine": "bing", "parsed_url": ["https", "a.example", "/one", "", "", ""],
         "template": "default.html", "engines": ["bing"], "positions": [1], "score": 1.0,
         "category": "general", "publishedDate": None},
        {"url": "https://a.example/one#part", "title": "One again", "content": ""},
        {"url": "magnet:?xt=urn:btih:1", "title": "No page", "template": "torrent.html"},
        {"url": "http://b.example/two", "title": "Two", "content": None},
    ],
    "answers": [], "corrections": [], "infoboxes": [], "suggestions": ["q2"],
    "unresponsive_engines": [["google", "access denied"]],
}  # fmt: skip
# searx/webapp.py: formats that settings.yml does not list are answered by flask.abort(403).
SEARXNG_FORBIDDEN = (403, "text/html", "<!doctype html><title>403 Forbidden</title>")
# searx/limiter.py: too_many_requests
SEARXNG_LIMITED = (429, "text/plain", "Too Many Requests")

# api-dashboard.search.brave.com/api-reference/web/search: WebSearchApiResponse
BRAVE = {
    "type": "search",
    "query": {"original": "q", "more_results_available": True},
    "mixed": {"type": "mixed", "main": [{"type": "web", "index": 0, "all": False}]},
    "web": {"type": "search", "family_friendly": True, "results": [
        {"type": "search_result", "title": "One", "url": "https://a.example/one",
         "description": "First <strong>extract</strong>", "language": "en",
         "profile": {"name": "A", "url": "https://a.example/one", "long_name": "a.example"},
         "meta_url": {"scheme": "https", "netloc": "a.example", "hostname": "a.example"}},
        {"type": "search_result", "title": "Two", "url": "https://b.example/two",
         "description": "Second"}]},
}  # fmt: skip
# nearai/ironclaw issue 2780 shows the first; the form of both is that of Brave's API reference.
BRAVE_KEY = (422, {"type": "ErrorResponse", "error": {
    "id": "1", "status": 422, "code": "SUBSCRIPTION_TOKEN_INVALID",
    "detail": "The provided subscription token is invalid."}})  # fmt: skip
BRAVE_LIMITED = (429, {"type": "ErrorResponse", "error": {
    "id": "1", "status": 429, "code": "RATE_LIMITED",
    "detail": "Request rate limit exceeded for plan."}})  # fmt: skip


def duckduckgo_page():
    """The page as searx/engines/duckduckgo.py and deedy5/ddgs read it: an advert, two results."""

    def result(kind, href, title, text):
        return (
            f'<div class="result results_links results_links_deep {kind} ">'
            '<div class="links_main links_deep result__body"><h2 class="result__title">'
            f'<a rel="nofollow" class="result__a" href="{href}">{title}</a></h2>'
            '<div class="result__extras"><div class="result__extras__url">'
            f'<a class="result__url" href="{href}">a.example</a></div></div>'
            f'<a class="result__snippet" href="{href}">{text}</a>'
            '<div class="clear"></div></div></div>'
        )

    away = (
        "//duckduckgo.com/l/?uddg=" + quote("https://b.example/two?x=1&y=2", safe="") + "&amp;rut=0"
    )
    return (
        '<!DOCTYPE html><html><body><div id="links" class="results">'
        + result("result--ad", "https://duckduckgo.com/y.js?ad_domain=x", "Buy", "Advert")
        + result(
            "web-result", "https://a.example/one", "One &amp; <b>bold</b>", "First <b>extract</b>"
        )
        + result("web-result", away, "Two", "Second")
        + "</div></body></html>"
    )


# Answered with 202 to whom it takes for a program; readers of this page look for a class that
# begins with `anomaly`. The words are from memory, and nothing here reads them.
DUCKDUCKGO_ROBOT = (
    202, "text/html",
    '<div class="anomaly-modal__title">Unfortunately, bots use DuckDuckGo too.</div>',
)  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    state: dict

    def log_message(self, *args):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.state["seen"].append((parts.path, query, dict(self.headers)))
        if self.state["answer"] is not None:
            return self.answer(*self.state["answer"])
        if parts.path == "/search":  # SearXNG
            return self.answer(200, "application/json", json.dumps(SEARXNG))
        if self.headers.get("X-Subscription-Token") != KEY:
            status, body = BRAVE_KEY
            return self.answer(status, "application/json", json.dumps(body))
        return self.answer(200, "application/json", json.dumps(BRAVE))

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.state["seen"].append((self.path, parse_qs(body), dict(self.headers)))
        self.answer(*(self.state["answer"] or (200, "text/html; charset=UTF-8", duckduckgo_page())))

    def answer(self, status, kind, text):
        raw = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@contextmanager
def serve():
    """A fake of all three; `state["answer"]` is (status, type, text) in place of the good one."""
    state = {"seen": [], "answer": None}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"state": state}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state["url"] = f"http://127.0.0.1:{server.server_port}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
