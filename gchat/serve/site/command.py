"""`gchat web`: the life of the process."""

import asyncio
import logging
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import sqlalchemy as sa
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gchat.serve.command import leave_to_rest, log_to_stderr
from gchat.serve.http_server import HttpServer, listen
from gchat.serve.open_models import open_service
from gchat.serve.service import Service
from gchat.serve.site import accounts, markdown, migrating, samples, search
from gchat.serve.site.app import make_site_app
from gchat.serve.site.database import Database
from gchat.serve.site.only_one import only_one
from gchat.serve.site.options import Web, database_of
from gchat.serve.site.passwords import Passwords
from gchat.serve.site.quotas import Quotas, UserKeys
from gchat.serve.site.site import Rules, Site

Finder = Callable[[str], Awaitable[list[search.Source]]]
SINGLE = "me"
"""Name of the user of a site that has one."""


def web(options: Web) -> None:
    """Serves until a signal; returns when all is in order."""
    options.check()
    listener = listen(options.host, options.port)  # before minutes of loading
    with listener, ExitStack() as locked:
        database = Database(database_of(options.database))
        # A database that is there is looked at and locked before minutes of loading. One that is
        # not is made after them: a start that comes to nothing leaves nothing behind.
        if there := database.is_made:
            migrating.refuse(database)
            locked.enter_context(only_one(database))
        find = _finder(options)
        quotas = Quotas(options.rate, options.token_rate, database)
        service = open_service(options, UserKeys(database, quotas), quotas)
        if not there:
            locked.enter_context(only_one(database))
        migrating.upgrade(database)
        site = _site(options, database, service, quotas, find)
        log_to_stderr()
        leave_to_rest()
        listener.listen(2048)  # whoever reads the next line may ask at once
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _hints(options, database)
        print(f"gchat web: http://{shown}:{port}/", file=sys.stderr, flush=True)
        service.driver.start()
        try:
            asyncio.run(_serve(options, site, listener))
        finally:
            service.driver.stop()
    print("gchat web: ended", file=sys.stderr, flush=True)


def _site(
    options: Web, database: Database, service: Service, quotas: Quotas, find: Finder | None
) -> Site:
    """The site over a database that is up to date."""
    single = database.write_now(_single_user) if options.single_user else None
    rules = Rules(
        name=options.site_name,
        registration=options.registration,
        single_user=single,
        context=options.context,
        max_bytes=round(options.max_body_mib * 2**20),
    )
    return Site(
        service, database, Passwords(), quotas, rules, markdown.render, markdown.Growing,
        find=find, quote=search.quoted, list_sources=search.as_json,
        patience_s=options.patience,
    )  # fmt: skip


def _finder(options: Web) -> Finder | None:
    """The search of the web with the texts of its pages; None where it is off."""
    if options.search == "off":
        return None
    given = {"url": options.search_url, "key": os.environ.get(options.search_key_env, "")}
    return partial(search.gather, search.searcher(options.search, given))


async def _serve(options: Web, site: Site, listener: Any) -> None:
    app: Any = make_site_app(site)
    app = ProxyHeadersMiddleware(app, trusted_hosts=list(options.trust_proxy))
    server = HttpServer(
        app, site.service, drain_s=options.drain, busy=lambda: bool(site.answers.running)
    )
    await site.start(samples.record)
    try:
        await server.serve(sockets=[listener])
    finally:
        await site.close()


def _single_user(c: sa.Connection) -> str:
    """The one user of a site on loopback; made the first time, with a password nobody knows."""
    there = accounts.user_by_name(c, SINGLE)
    if there is not None:
        return there[0].id
    hidden = Passwords().hash_now(secrets.token_urlsafe(32))
    return accounts.add_user(c, SINGLE, hidden, role="admin").id


def _hints(options: Web, database: Database) -> None:
    if not options.single_user and not database.now(accounts.count_users):
        print(
            "gchat web: nobody has an account; make one with `gchat web admin add-user --name NAME "
            "--role admin` and the same --database", file=sys.stderr,
        )  # fmt: skip
    logging.getLogger("alembic").setLevel(logging.WARNING)
