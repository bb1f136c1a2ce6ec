"""Attacks on the site that are none of one route: sessions, guesses, names, texts, sizes, paths."""

import logging
import re
from html.parser import HTMLParser
from urllib.parse import quote

import pytest

from chat_site import PASSWORD, add_user, text_of
from gchat.serve.site import accounts, names
from gchat.serve.site.attempts import Attempts, network
from gchat.serve.site.faults import Fault

EVIL = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<svg onload=alert(1)>",
    "[x](javascript:alert(1))", "![x](https://evil.example/?leak)", "<iframe src=//evil.example>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>", "</p><style>*{}</style>",
)  # fmt: skip


class Live(HTMLParser):
    """Collects markup that would run, or would ask another host by itself."""

    def __init__(self):
        super().__init__()
        self.live = []

    def handle_starttag(self, tag, attrs):
        if tag in ("script", "iframe", "style", "object", "embed", "base", "form", "link"):
            self.live.append(tag)
        for name, value in attrs:
            local = (value or "").startswith(("/", "#")) and not value.startswith("//")
            if name.startswith("on") or (name in ("src", "srcset", "data") and not local):
                self.live.append(name)
            if name == "href" and not local and not value.startswith(("https://", "http://")):
                self.live.append(value)


def live(html):
    parser = Live()
    parser.feed(html)
    return parser.live


# ── Sessions ────────────────────────────────────────────────────────────────────────────────────


def test_a_session_is_never_one_that_somebody_else_chose(place):
    client = place.client()
    client.http.cookies.clear()
    for name, value in (("gchat_session", "A" * 43), ("gchat_visitor", "B" * 43)):
        client.http.cookies.set(name, value, domain="127.0.0.1", path="/")
    client._load("/login")
    client.login("alice")
    first = client.http.cookies["gchat_session"]
    assert first != "A" * 43 and len(first) == 43
    client.login("alice")  # a second login: another session, and the first is over
    second = client.http.cookies["gchat_session"]
    assert second != first
    stolen = place.client()
    stolen.http.cookies.set("gchat_session", first)
    assert stolen.get("/api/me").status_code == 401
    stored = place.site.database.now(
        lambda c: c.exec_driver_sql("SELECT hash FROM sessions").scalars().all()
    )
    assert second not in stored and accounts.hashed(second) in stored


def test_cookies_are_hidden_from_scripts_and_bound_under_tls(place):
    from gchat.serve.site.door import cookie

    assert cookie({"scheme": "https"}, "session", "x", 9) == (
        "__Host-gchat_session=x; Max-Age=9; Path=/; HttpOnly; SameSite=Lax; Secure"
    )
    answer = place.client().post("/api/login", name="bob", password=PASSWORD)
    (header,) = [v for k, v in answer.headers.multi_items() if k == "set-cookie"]
    assert re.fullmatch(
        r"gchat_session=\S{43}; Max-Age=2592000; Path=/; HttpOnly; SameSite=Lax", header
    )


@pytest.mark.parametrize("other", ['a={"x": 1}', "a=two words", "a", 'a="', "a[b]=é", "=;;"])
def test_cookies_of_other_programs_shut_nobody_out(place, other):
    """Whoever serves another port of this host may have set any cookie."""
    client = place.client("bob")
    own = "; ".join(f"{name}={value}" for name, value in client.http.cookies.items())
    client.http.cookies.clear()
    for cookies in (f"{other}; {own}", f"{own}; {other}"):
        header = {"Cookie": cookies.encode()}
        assert client.http.get("/api/me", headers=header).json()["name"] == "bob", cookies


def test_log_out_here_everywhere_and_by_a_new_password(place):
    add_user(place.site, "dora")
    here, there, third = (place.client("dora") for _ in range(3))
    kept = here.http.cookies["gchat_session"]
    assert here.post("/api/logout").status_code == 200
    here.http.cookies.set("gchat_session", kept)
    assert here.get("/api/me").status_code == 401 and there.get("/api/me").status_code == 200
    changed = there.post("/api/password", old=PASSWORD, new="another plain word")
    assert changed.status_code == 200
    there._load("/")
    assert third.get("/api/me").status_code == 401 and there.get("/api/me").status_code == 200
    fourth = place.client()
    assert fourth.post("/api/login", name="dora", password=PASSWORD).status_code == 401
    assert there.post("/api/logout-everywhere").status_code == 200
    assert there.get("/api/me").status_code == 401


def test_sessions_end_with_time_whatever_the_clock_does(place, monkeypatch):
    client, now = place.client("bob"), accounts.now
    for jump_s, status in ((0, 200), (accounts.IDLE_S + 60, 401), (-86400 * 400, 200)):
        monkeypatch.setattr(accounts, "now", lambda jump_s=jump_s: now() + jump_s)
        assert client.get("/api/me").status_code == status, jump_s


def test_a_disabled_user_is_out_at_once(place, root):
    user = add_user(place.site, "eve")
    eve = place.client("eve")
    key = eve.json("POST", "/api/keys", json={"name": "k"})["key"]
    bearer = {"Authorization": f"Bearer {key}"}
    assert eve.http.get("/v1/models", headers=bearer).status_code == 200
    place.site.service.models["small"].address.http()
    made = eve.chat(content="to be shared")[0][2]["conversationId"]
    shared = eve.json("POST", f"/api/conversations/{made}/share")["url"]
    assert "to be shared" in root.http.get(shared).text
    assert root.patch(f"/api/admin/users/{user.id}", disabled=True).status_code == 200
    assert eve.get("/api/me").status_code == 401
    assert eve.http.get("/v1/models", headers=bearer).status_code == 401
    again = place.client().post("/api/login", name="eve", password=PASSWORD)
    assert again.status_code == 403 and "disabled" in again.json()["error"]["message"]
    assert root.http.get(shared).status_code == 404
    assert root.patch(f"/api/admin/users/{user.id}", disabled=False).status_code == 200
    assert "to be shared" in root.http.get(shared).text


# ── Guesses ─────────────────────────────────────────────────────────────────────────────────────


def test_guessing_slows_down_whoever_guesses_and_nobody_else():
    clock = [0.0]
    attempts = Attempts(lambda: clock[0])

    def guess(account, address, known=False):
        try:
            attempts.check(account, address, known)
        except Fault as fault:
            return fault.after_s
        attempts.begin(account, address)
        return 0.0

    waits = []
    for _ in range(200):
        waits.append(guess("alice", "6.6.6.6"))
        clock[0] += 1
    assert sum(wait == 0 for wait in waits) < 20  # of 200 guesses in 200 s
    assert guess("alice", "7.7.7.7") == 0.0  # another address is not locked out
    for i in range(300):  # a thousand addresses guess at one account
        guess("bob", f"9.9.{i % 100}.{i}")
    assert guess("bob", "1.2.3.4") > 0 and guess("bob", "1.2.3.4", known=True) == 0.0
    assert network("2001:db8::1") == network("2001:db8::2") != network("2001:db8:0:1::1")
    assert network("::ffff:1.2.3.4") == network("1.2.3.4") == "1.2.3.4"


def test_wrong_logins_say_the_same_and_wait_with_a_header(place):
    client = place.client()
    answers = [
        client.post("/api/login", name=name, password="wrong wrong wrong")
        for name in ("frida", "nobody-of-this-name")
        for _ in range(6)
        if name != "frida" or place.site.database.now(accounts.user_by_name, "frida")
        or add_user(place.site, "frida")
    ]  # fmt: skip
    for several in (answers[:6], answers[6:]):
        assert [a.status_code for a in several] == [401] * 5 + [429]
        assert int(several[-1].headers["retry-after"]) >= 1
    assert len({a.text for a in answers if a.status_code == 401}) == 1


# ── Names and passwords ─────────────────────────────────────────────────────────────────────────

BAD_NAMES = {
    "a mixture": "аlice",  # a Cyrillic а
    "invisible": "ali\u200bce",
    "backwards": "ali\u202ece",
    "a space": "al ice",
    "markup": "<b>al</b>",
    "a dot first": ".alice",
    "short": "a",
    "long": "a" * 33,
    "a combining mark": "a\u0301\u0301\u0301lice",
    "an emoji": "al😀",
    "a control": "al\x07ice",
    "mathematical twice": "ｅｅ é",
}


@pytest.mark.parametrize("name", BAD_NAMES.values(), ids=BAD_NAMES)
def test_names_that_nobody_may_have(name):
    with pytest.raises(Fault):
        names.name_of(name)


@pytest.mark.parametrize("name", ["ALICE", "ａｌｉｃｅ", "al1ce", "аӏісе", "root", "r00t", "гооt"])
def test_names_that_look_like_taken_ones(place, visitor, name):
    answer = visitor.post("/api/register", name=name, password=PASSWORD)
    assert answer.status_code in (400, 409), answer.text
    assert answer.json()["error"]["field"] == "name"


@pytest.mark.parametrize("name", ["Zoë", "Ирина", "山田", "Ἑλένη", "weiß-2", "李.明"])
def test_names_of_the_world(name):
    assert names.name_of(name)[0] == name


@pytest.mark.parametrize(
    "password",
    [
        "short",
        "aaaaaaaaaaaa",
        "abcdefghijkl",
        "1234567890",
        "Password123!",
        "gustav1234",
        "gustav-gustav",
        "gustavxygustav",
    ],
)
def test_passwords_that_are_guessed_soon(visitor, password):
    answer = visitor.post("/api/register", name="gustav", password=password)
    assert answer.status_code == 400 and answer.json()["error"]["field"] == "password"


def test_registration_by_invitation_and_closed(place, root, monkeypatch):
    from dataclasses import replace

    made = root.json("POST", "/api/admin/invitations", json={"uses": 1})
    secret = made["url"].partition("=")[2]
    monkeypatch.setattr(place.site, "rules", replace(place.site.rules, registration="invitation"))
    client = place.client()
    body = {"name": "hilda", "password": PASSWORD}
    assert client.post("/api/register", **body).status_code == 403
    assert client.post("/api/register", **body, invitation="guess").status_code == 403
    # One that fails for its name uses nothing up.
    taken = client.post("/api/register", name="alice", password=PASSWORD, invitation=secret)
    assert taken.status_code == 409
    assert client.post("/api/register", **body, invitation=secret).status_code == 200
    client._load("/")
    assert client.get("/api/me").json()["name"] == "hilda"
    again = place.client().post("/api/register", name="hugo", password=PASSWORD, invitation=secret)
    assert again.status_code == 403
    monkeypatch.setattr(place.site, "rules", replace(place.site.rules, registration="closed"))
    assert place.client().post("/api/register", name="hugo", password=PASSWORD).status_code == 403


# ── Texts ───────────────────────────────────────────────────────────────────────────────────────


def test_no_text_becomes_markup_that_runs(place, upstream, alice, visitor):
    for evil in EVIL:
        coming = alice.chat(content=evil)
        made = coming[0][2]["conversationId"]
        alice.patch(f"/api/conversations/{made}", title=evil)
        rendered = [html for _, name, data in coming if name == "delta" for html in data["html"]]
        there = alice.json("GET", f"/api/conversations/{made}")
        rendered += [message["html"] for message in there["messages"]]
        url = alice.json("POST", f"/api/conversations/{made}/share")["url"]
        page = visitor.http.get(url)
        assert page.status_code == 200 and "noindex" in page.headers["x-robots-tag"]
        assert "<" not in evil or evil not in page.text
        rendered.append(page.text[page.text.index("<ol") : page.text.index("</ol>")])
        for html in rendered:
            assert live(html) == [], (evil, html)
        assert alice.delete(f"/api/conversations/{made}/share").status_code == 200
        assert visitor.http.get(url).status_code == 404


INJECTIONS = (
    "' OR 1=1 --", '" OR ""="', "'; DROP TABLE users; --", "%", "_", "a* OR b",
    "NEAR(", "owner:x", "{", "^x", "x:y", '"', "'", "\\", "\x00", "a\x00b", "()", "!", "<->",
)  # fmt: skip


@pytest.mark.parametrize("text", INJECTIONS)
def test_texts_that_look_like_sql_are_texts(place, alice, text):
    listed = alice.get("/api/conversations", params={"search": text})
    assert listed.status_code == 200, listed.text
    assert alice.get("/api/conversations", params={"before": text}).status_code in (200, 400)
    assert place.client().post("/api/login", name=text, password=text).status_code in (401, 429)
    assert alice.get(f"/api/conversations/{quote(text, safe='')}").status_code == 404


def test_headers_of_every_answer(place, alice):
    for path in ("/login", "/", "/api/me", "/api/nothing", "/nothing", "/static/app.js"):
        answer = alice.http.get(path)
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy and "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        if not path.startswith("/static"):
            assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/static/../site.py", "/static/..%2f..%2fsite.py", "/static/%2e%2e/app.py",
             "/static//etc/passwd", "/static/....//app.py", "/static/app.js%00.css"]
)  # fmt: skip
def test_no_path_leads_out_of_the_files(visitor, path):
    assert visitor.http.get(path).status_code == 404


@pytest.mark.parametrize("path", ["//evil.example", "/login?next=//evil.example", "/\\evil.example",
                                  "/c/..//evil.example", "/%2f%2fevil.example"])  # fmt: skip
def test_no_redirect_leaves_the_site(place, path):
    for client in (place.client(), place.client("alice")):
        answer = client.http.get(path)
        target = answer.headers.get("location", "/")
        assert target.startswith("/") and not target.startswith(("//", "/\\")), target


def test_bodies_that_are_too_large_or_no_json(place, alice):
    most = place.site.rules.max_bytes
    large = alice.request("POST", "/api/chat", content=b"x" * (most + 1),
                          headers={"Content-Type": "application/json"})  # fmt: skip
    assert large.status_code == 413

    def chunks():
        for _ in range(most // 65536 + 2):
            yield b" " * 65536

    sneaked = alice.request("POST", "/api/chat", content=chunks(),
                            headers={"Content-Type": "application/json"})  # fmt: skip
    assert sneaked.status_code == 413
    half = b'{"content": "\\ud800"}'
    for raw, status in ((b"{", 400), (b"[]", 400), (b"\xff\xfe", 400), (half, 400),
                        (b'{"content": 3}', 400), (b'{"content": "x", "other": 1}', 400),
                        (b"[" * 100_000, 400)):  # fmt: skip
        answer = alice.request("POST", "/api/chat", content=raw,
                               headers={"Content-Type": "application/json"})  # fmt: skip
        assert answer.status_code == status, (raw[:20], answer.text)
    upload = alice.request("POST", "/api/import", files={"file": b"GIF89a"})
    assert upload.status_code == 415


def test_a_paste_that_no_model_reads_is_refused_and_nothing_is_kept(alice):
    before = alice.json("GET", "/api/conversations")
    answer = alice.post("/api/chat", content="word " * 40_000)
    assert answer.status_code == 413 and "2,048" in answer.json()["error"]["message"]
    assert alice.json("GET", "/api/conversations") == before


def test_no_secret_is_ever_logged(place, caplog):
    add_user(place.site, "ivy")
    with caplog.at_level(logging.DEBUG):
        client = place.client("ivy")
        key = client.json("POST", "/api/keys", json={"name": "k"})["key"]
        coming = client.chat(content="a private question")
        bearer = {"Authorization": f"Bearer {key}"}
        client.http.get("/v1/models", headers=bearer)
        client.get("/api/conversations?search=private")
        client.get(f"/{key}")
        client.post("/api/login", name="ivy", password="wrong " + PASSWORD)
        url = client.json("POST", f"/api/conversations/{coming[0][2]['conversationId']}/share")[
            "url"
        ]
        client.http.get(url)
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("gchat", "sqlalchemy"))]
    assert len(ours) > 5
    secrets = [PASSWORD, key, "private", client.http.cookies["gchat_session"], client.csrf,
               url.rpartition("/")[2], text_of(coming)]  # fmt: skip
    for line in ours:
        assert not any(secret in line for secret in secrets), line
