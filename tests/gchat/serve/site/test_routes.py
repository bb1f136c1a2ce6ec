"""Every route of the table: who may come, and that nobody reaches what is somebody else's.

The cases are made from the table itself. A new route with a part of its path that is not known here
fails, and so does one that answers to others than the owner.
"""

import pytest

from chat_site import add_user
from gchat.serve.site.app import ROUTES
from gchat.serve.site.routes import Route

BODIES = {
    "Login": {"name": "alice", "password": "x"},
    "Register": {"name": "carl", "password": "x"},
    "Password": {"old": "x", "new": "y"},
    "Me": {"settings": {"system": "stolen"}},
    "NewKey": {"name": "stolen"},
    "NewConversation": {"title": "stolen"},
    "Changes": {"title": "stolen", "pinned": True},
    "Rating": {"value": -1},
    "Imported": {"messages": [{"role": "user", "content": "x"}]},
    "Chat": {"content": "stolen"},
    "Stop": {"message": "MESSAGE"},
    "UserChanges": {"disabled": True},
    "NewPassword": {},
    "NewInvitation": {},
}
"""A good body of each kind."""
OWNED = ("conversation_id", "message_id", "key_id")
ADMINS = ("user_id", "invitation_id")
PUBLIC = ("token", "name")
"""Parts of paths: what belongs to a user, what administrators see, what anybody may."""
NAMED = {
    "Chat": ({"conversationId": "CONVERSATION", "content": "x"}, {"regenerate": "MESSAGE"}),
    "Stop": ({"message": "MESSAGE"},),
}
"""Bodies that name what belongs to a user."""


def parts(route):
    return [part[1:-1].split(":")[0] for part in route.path.split("/") if part.startswith("{")]


def title(route):
    return f"{route.method} {route.path}"


@pytest.fixture(scope="module")
def owned(place, alice, root):
    """Ids of alice's conversation, message and key, and of an invitation."""
    coming = alice.chat(content="my secret")
    made = {
        "conversation_id": coming[0][2]["conversationId"],
        "message_id": coming[-1][2]["message"]["id"],
        "key_id": alice.json("POST", "/api/keys", json={"name": "mine"})["id"],
        "user_id": add_user(place.site, "victim").id,
        "invitation_id": root.json("POST", "/api/admin/invitations", json={})["id"],
        "token": "no-such-token",
        "name": "no-such-file",
    }
    return made


def filled(route, owned):
    path = route.path.replace(":path}", "}")
    for part in parts(route):
        path = path.replace("{" + part + "}", owned[part])
    return path


def body_of(route, owned, named=None):
    if route.body is None:
        return None
    body = dict(BODIES[route.body.__name__] if named is None else named)
    places = {"MESSAGE": owned["message_id"], "CONVERSATION": owned["conversation_id"]}
    return {key: places.get(str(value), value) for key, value in body.items()}


def ask(client, route, owned, named=None):
    body = body_of(route, owned, named)
    options = {} if body is None else {"json": body}
    return client.request(route.method, filled(route, owned), **options)


def test_the_table_is_all_there_is(place):
    """The application answers what the table names, and all parts are known here."""
    app_paths = {(route.method, route.path) for route in ROUTES}
    assert len(app_paths) == len(ROUTES)
    described = place.client().http.get("/api/openapi.json").json()["paths"]
    there = {(m.upper(), path) for path, several in described.items() for m in several}
    assert there == {(m, p.replace(":path}", "}")) for m, p in app_paths}
    for route in ROUTES:
        assert set(parts(route)) <= {*OWNED, *ADMINS, *PUBLIC}, title(route)
        assert route.body is None or route.body.__name__ in BODIES, title(route)
        if set(parts(route)) & set(ADMINS):
            assert route.access == "admin", title(route)


CLOSED = [route for route in ROUTES if route.access != "open"]


@pytest.mark.parametrize("route", CLOSED, ids=title)
def test_nobody_comes_in_without_a_session(visitor, owned, route):
    answer = ask(visitor, route, owned)
    assert answer.status_code == 401 and answer.json() == {"error": {"message": "log in first"}}


def theirs(routes, owned):
    """(route, body) of each way to name something that belongs to a user."""
    for route in routes:
        if set(parts(route)) & set(OWNED):
            yield route, None
        for named in NAMED.get(route.body.__name__ if route.body else "", ()):
            yield route, named


def reached(client, routes, owned):
    """Routes that answered somebody about what is not his."""
    return [
        (title(route), named)
        for route, named in theirs(routes, owned)
        if ask(client, route, owned, named).status_code not in (404, 303)
    ]


def test_nobody_reaches_what_is_somebody_elses(owned, alice, bob, root, visitor):
    before = alice.json("GET", f"/api/conversations/{owned['conversation_id']}")
    assert len(list(theirs(ROUTES, owned))) >= 12
    for other in (bob, root):  # an administrator reads no conversations either
        assert reached(other, ROUTES, owned) == []
    assert alice.json("GET", f"/api/conversations/{owned['conversation_id']}") == before
    assert len(alice.json("GET", "/api/keys")["items"]) == 1
    assert "my secret" not in bob.get("/api/conversations?search=secret").text
    for path in (f"/c/{owned['conversation_id']}", f"/share/{owned['conversation_id']}"):
        assert "my secret" not in visitor.http.get(path).text


def test_nothing_of_ones_own_leads_to_what_is_somebody_elses(owned, alice, bob):
    """Ids of somebody else's in bodies about a conversation of one's own."""
    before = alice.json("GET", f"/api/conversations/{owned['conversation_id']}")
    mine = bob.chat(content="mine")[0][2]["conversationId"]
    theirs = owned["message_id"]
    assert bob.patch(f"/api/conversations/{mine}", leaf=theirs).status_code == 404
    for body, status in (({"content": "x", "parent": theirs}, 409), ({"regenerate": theirs}, 404)):
        assert bob.post("/api/chat", conversationId=mine, **body).status_code == status
    asked = before["messages"][0]["id"]
    copied = [{"id": theirs, "role": "user", "content": "a"},
              {"id": "b", "parent": asked, "role": "assistant", "content": "b"}]  # fmt: skip
    assert bob.post("/api/import", messages=copied, leaf=asked).status_code == 400
    there = bob.json("GET", f"/api/conversations/{mine}")
    assert len(there["messages"]) == 2 and "secret" not in str(there)
    assert alice.json("GET", f"/api/conversations/{owned['conversation_id']}") == before


def test_a_route_without_an_owner_check_is_found(owned, bob, monkeypatch):
    """Mutation: a route that reads a conversation by its id alone fails the test above."""
    from gchat.serve.site import conversations
    from gchat.serve.site.tables import conversations as table

    def unchecked(c, user_id, conversation_id):
        import sqlalchemy as sa

        row = c.execute(sa.select(table).where(table.c.id == conversation_id)).first()
        return dict(row._mapping)

    monkeypatch.setattr(conversations, "one", unchecked)
    export = Route("GET", "/api/conversations/{conversation_id}/export", "user", None)
    assert reached(bob, [export], owned) == [(title(export), None)]


ADMIN = [route for route in ROUTES if route.access == "admin"]


@pytest.mark.parametrize("route", ADMIN, ids=title)
def test_only_administrators_administer(owned, bob, route):
    answer = ask(bob, route, owned)
    assert answer.status_code == 403
    assert bob.get("/admin").status_code == 403


WRITING = [route for route in ROUTES if route.method != "GET"]


@pytest.mark.parametrize("route", WRITING, ids=title)
def test_requests_that_other_sites_forge_are_refused(owned, alice, route):
    path, body = filled(route, owned), body_of(route, owned)
    forged = [
        {},
        {"X-CSRF-Token": "0" * 64},
        {"X-CSRF-Token": alice.csrf, "Origin": "http://evil.example"},
        {"X-CSRF-Token": alice.csrf, "Origin": "null"},
        {"X-CSRF-Token": alice.csrf, "Sec-Fetch-Site": "cross-site"},
        {"X-CSRF-Token": alice.csrf, "Sec-Fetch-Site": "same-site"},
    ]
    for headers in forged:
        answer = alice.http.request(route.method, path, json=body, headers=headers)
        assert answer.status_code == 403, (headers, answer.text)
        assert answer.json()["error"]["field"] in ("csrf", "origin")
