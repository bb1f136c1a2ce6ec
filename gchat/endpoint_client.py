"""A `Client` of any URL that speaks OpenAI's protocol: OpenAI, vLLM, llama.cpp, our own server.

The key comes from an environment variable or a file, goes to the configured host only (redirects
are not followed), and is taken out of every message.
"""

import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from gaia.errors import ConfigError, GaiaError
from gchat import endpoint_wire as wire
from gchat.client import Answer, Budget, ClientError, Delta, Question, Usage

if TYPE_CHECKING:
    import httpx2

KEY_VARIABLE = "GAIA_API_KEY"
_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that a later try may heal."""
_FATAL = (401, 402, 403, 404, 405, 429, 503)
"""Statuses that the next question would meet too, once the tries are used up."""
_CONNECT_S, _LONGEST_PAUSE_S = 10.0, 60.0
_HIDDEN = "(hidden)"

T = TypeVar("T")


def read_key(variable: str = KEY_VARIABLE, file: Path | None = None) -> str:
    """The key from a file, else from the environment; empty where neither has one.

    Raises:
        ConfigError: the file cannot be read, or the key holds what no header can.
    """
    if file is not None:
        try:
            key, place = file.read_text(encoding="utf-8").strip(), str(file)
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise ConfigError(f"key file {str(file)!r}: {reason}", "check --key-file") from None
        if not key:
            raise ConfigError(f"key file {place!r} is empty", "put the key into it")
    else:
        key, place = os.environ.get(variable, "").strip(), variable
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(f"the key in {place} holds a space or no ASCII", "check it")
    return key


class EndpointClient:
    """Asks an OpenAI-compatible endpoint.

    Args:
        url: base address, as `https://api.openai.com/v1`.
        model: name of the model; where left out, the one that the endpoint lists.
        server: its kind; where left out, told from its list of models.
        key: API key; see `read_key`.
        tries: attempts of one request.
        backoff_s: first pause between two, doubled each time, with jitter; in s.
        timeout_s: longest wait for a piece of an answer, in s.
        concurrency: requests of a batch that are open at once.
        budget: caps on what may be spent.

    Raises:
        ConfigError: the address cannot be used.
    """

    model: str
    server: wire.Kind
    converses = True
    tokens_per_step = None

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        server: wire.Kind | None = None,
        key: str = "",
        tries: int = 5,
        backoff_s: float = 0.5,
        timeout_s: float = 600.0,
        concurrency: int = 8,
        budget: Budget | None = None,
    ) -> None:
        import httpx2

        self._url = base_url(url)
        for name, value in (("tries", tries), ("concurrency", concurrency)):
            if value < 1:
                raise ConfigError(f"{name} is {value}", "use at least 1")
        if not 0 < timeout_s < float("inf"):
            raise ConfigError(f"timeout is {timeout_s}", "use seconds above 0")
        self._key, self._tries, self._backoff_s = key, tries, backoff_s
        self._concurrency, self.budget = concurrency, budget or Budget()
        self._closed = threading.Event()
        self._http = httpx2.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s), pool=None),
            limits=httpx2.Limits(max_connections=None),
            follow_redirects=False,
        )
        try:
            self.model, self.server = self._choose(model, server)
        except BaseException:
            self.close()
            raise

    def _choose(self, model: str | None, server: wire.Kind | None) -> tuple[str, wire.Kind]:
        """Model and kind of server, asked for where they are not given."""
        if model is not None and server is not None:
            return model, server
        try:
            owners = self.models()
        except ClientError as error:
            if model is None or error.status not in (404, 405, 501):
                raise
            return model, server or "openai"  # it has no such list
        if model is None and len(owners) != 1:
            some = ", ".join(list(owners)[:10]) + (", …" if len(owners) > 10 else "")
            raise ConfigError(f"the endpoint has {len(owners)} models ({some})", "choose --model")
        model = model if model is not None else next(iter(owners))
        owner = owners.get(model) or next(iter(owners.values()), "")
        return model, server or wire.kind_of(owner)

    def models(self) -> dict[str, str]:
        """Owners of the models that the endpoint lists, by the models' names.

        Raises:
            ClientError: it cannot be reached, or has no such list.
        """
        try:
            listed = [dict(one) for one in self.get("models")["data"]]
            return {str(one["id"]): str(one.get("owned_by", "")) for one in listed}
        except (KeyError, TypeError, ValueError) as error:
            raise ClientError(
                f"{self._url}/models is no list of models ({error})", "check --endpoint", fatal=True
            ) from None

    def check(self, question: Question) -> None:
        """Raises ConfigError where the question cannot be asked here."""
        question.check()
        wire.request(question, self.server, self.model, stream=False)

    def fit(self, question: Question) -> tuple[Question, int, bool]:
        """The question as it is: the endpoint knows its own window."""
        return question, 0, False

    def complete(self, question: Question) -> Answer:
        """Asks, and waits for the whole answer."""
        question.check()
        sent = wire.request(question, self.server, self.model, stream=False)
        most = question.max_tokens * question.n

        def once() -> Answer:
            usage = Usage()
            self.budget.begin(most)
            try:
                answer = wire.answer(self._once("POST", sent.path, sent.body), question, self.model)
                usage = answer.usage
            finally:
                self.budget.end(most, usage)
            return answer

        return self._trying(once)

    def stream(self, question: Question) -> Iterator[Delta]:
        """Asks, and yields pieces as they come; closing the iterator closes the connection.

        What fails before the first piece is tried again, what fails later is an error.
        """
        question.check()
        sent = wire.request(question, self.server, self.model, stream=True)
        most, usage = question.max_tokens * question.n, Usage()

        def begin() -> tuple[Iterator[Delta], Delta | None]:
            self.budget.begin(most)
            try:
                pieces = self._pieces(sent)
                return pieces, next(pieces, None)
            except BaseException:
                self.budget.end(most, Usage())
                raise

        pieces, piece = self._trying(begin)
        finished = set()
        try:
            with closing(pieces):  # type: ignore[type-var]
                while piece is not None:
                    usage = piece.usage or usage
                    if piece.finish is not None:
                        finished.add(piece.index)
                    yield piece
                    piece = next(pieces, None)
        finally:
            self.budget.end(most, usage)
        if len(finished) != question.n:
            raise ClientError("the endpoint's stream broke off before its end", "ask again")

    def _pieces(self, sent: wire.Sent) -> Iterator[Delta]:
        import httpx2

        try:
            with self._http.stream("POST", f"{self._url}/{sent.path}", json=sent.body) as response:
                if not response.is_success:
                    response.read()
                    raise self._refused(response)
                yield from wire.deltas(wire.events(response.iter_bytes()))
        except ClientError as error:
            error.args = (self._hide(str(error)),)
            error.problem = self._hide(error.problem)
            raise
        except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
            raise self._unreachable(error) from None

    def batch(self, questions: Iterable[Question]) -> Iterator[tuple[int, Answer | GaiaError]]:
        """Asks many at once, `concurrency` at a time; a fatal error is raised after the others."""
        tasks: queue.SimpleQueue[tuple[int, Question] | None] = queue.SimpleQueue()
        results: queue.SimpleQueue[tuple[int, Answer | GaiaError]] = queue.SimpleQueue()

        def work() -> None:
            while (task := tasks.get()) is not None:
                index, question = task
                try:
                    results.put((index, self.complete(question)))
                except GaiaError as error:
                    results.put((index, error))
                except Exception as error:  # a bug: its question is not to be waited for
                    results.put((index, ClientError(f"{type(error).__name__}: {error}")))

        # Daemons: the program must not wait at its end for answers that nobody wants any more.
        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._concurrency)]
        for thread in threads:
            thread.start()
        waiting, flying = enumerate(questions), 0
        fatal: GaiaError | None = None
        try:
            while True:
                while fatal is None and flying < 2 * self._concurrency:
                    task = next(waiting, None)
                    if task is None:
                        break
                    tasks.put(task)
                    flying += 1
                if not flying:
                    break
                index, result = results.get()
                flying -= 1
                if isinstance(result, ClientError) and result.fatal:
                    fatal = fatal or result
                else:
                    yield index, result
        finally:
            for _ in threads:
                tasks.put(None)
        if fatal is not None:
            raise fatal

    def close(self) -> None:
        """Closes the connections and ends pauses between tries."""
        self._closed.set()
        self._http.close()

    # ── HTTP ────────────────────────────────────────────────────────────────────────────────────

    def get(self, path: str) -> Any:
        """The JSON at a path below the address; ClientError where there is none."""
        return self._trying(lambda: self._once("GET", path, None))

    def _once(self, method: str, path: str, body: Any) -> Any:
        import httpx2

        try:
            response = self._http.request(method, f"{self._url}/{path}", json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._unreachable(error) from None
        if self._closed.is_set() and "network_stream" in response.extensions:
            response.extensions["network_stream"].close()  # close() found it not connected yet
        if not response.is_success:
            raise self._refused(response)
        try:
            return json.loads(response.content)
        except ValueError:
            raise ClientError(
                "the endpoint's answer is not JSON", "check --endpoint: it ends in /v1 as a rule"
            ) from None

    def _trying(self, once: Callable[[], T]) -> T:
        """Repeats what a later try may heal."""
        for attempt in range(self._tries):
            try:
                return once()
            except _Passing as error:
                if attempt + 1 == self._tries or self._closed.is_set():
                    raise ClientError(
                        error.problem, error.remedy, status=error.status, fatal=error.fatal,
                        after_s=error.after_s, cause=error.cause,
                    ) from None  # fmt: skip
                pause = self._backoff_s * 2**attempt * random.uniform(0.7, 1.3)
                self._closed.wait(min(_LONGEST_PAUSE_S, max(pause, error.after_s or 0.0)))
        raise AssertionError("tries is at least 1")

    def _refused(self, response: "httpx2.Response") -> ClientError:
        status = response.status_code
        message, code = wire.problem(response.content)
        text = self._hide(f"the endpoint answered {status}: {message or response.reason_phrase}")
        spent = "insufficient_quota" in code  # OpenAI's 429 that no waiting heals
        fatal = spent or status in _FATAL or 300 <= status < 400
        if status in _AGAIN and not spent:
            after_s = _seconds(response.headers.get("Retry-After", ""))
            return _Passing(text, "try later", status=status, fatal=fatal, after_s=after_s)
        return ClientError(text, _remedy(status), status=status, fatal=fatal)

    def _unreachable(self, error: Exception) -> ClientError:
        import httpx2

        timed_out = isinstance(error, httpx2.TimeoutException)
        text = self._hide(" ".join(str(error).split()) or type(error).__name__)
        doing = "took too long" if timed_out else "cannot be reached"
        away = isinstance(error, (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL))
        cause = "away" if away else "time-out" if timed_out else "broken off"
        return _Passing(
            f"{self._url} {doing} ({text})", "check that it runs, and the address", fatal=True,
            after_s=0.0, cause=cause,
        )  # fmt: skip

    def _hide(self, text: str) -> str:
        return text.replace(self._key, _HIDDEN) if self._key else text


class _Passing(ClientError):
    """An error that a later try may heal."""


def base_url(url: str) -> str:
    """The base address without a slash at its end.

    Raises:
        ConfigError: it is none, or holds a secret.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"endpoint {url!r} is no address ({error})", "check it") from None
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "the endpoint's address holds a user, password or query",
            f"put the key into the variable {KEY_VARIABLE}, or give --key-file",
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ConfigError(f"endpoint {url!r} is no address", "give one such as http://HOST:8000/v1")
    return url.rstrip("/")


def _remedy(status: int) -> str:
    if status in (401, 403):
        return f"check the key in {KEY_VARIABLE} or --key-file"
    if status == 404:
        return "check --endpoint (it ends in /v1 as a rule) and --model"
    if 300 <= status < 400:
        return "give --endpoint the address that it points to"
    return "mend the question"


def _seconds(text: str) -> float:
    """Seconds that `Retry-After` asks for: a number, or a date."""
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
