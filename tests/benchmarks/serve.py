"""`gchat serve` under load: many streams at once, clients that leave, and every token checked.

    python tests/benchmarks/serve.py [--run RUN] [--gguf FILE --llama PROGRAM] [--quick]

Clients open streams without a pause, each with a prompt that no other has at that time, 30% of
them leaving at a random token; after `--seconds` every finished answer is compared, token for
token, with the greedy answer to its prompt alone on the same server (so at the same slot count).
`lost` streams broke off or were refused, `mixed` answers are not those of their prompts alone. Then
all rows must be free, the engine's steps must stand still, also after a client that left the only
stream (`steps_after_leaving` of the answer's `steps_wanted`), and the memory must be what it was
after the first fifth of the time, within 5%.

`serial` is the same work by one client on a server of one slot. With --gguf, llama.cpp's server
(xllamacpp's wheel in PYTHON) does the same on the same weights with as many slots. RUN is by
default a small model (depth 4, width 256) of a few steps on made-up text. Clients share the cores
with the servers. The aim is 3 times `serial`. A prompt's lone answer is asked once: a large
model needs fewer prompts (`--prompts`). Prompts come again, and servers keep what they have read of
them: with --fresh none does.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import harness

sys.path.insert(0, str(harness.ROOT / "tests"))
LEAVE = 0.3
LONG = 300
"""Tokens of the answer that its client leaves at the first."""
WINDOW = 512
"""Positions of a row of llama.cpp's server; prompts and answers have fewer."""


class Server:
    """A server process; `url` once it answers."""

    def __init__(self, command: list, log: Path, *, told: str):
        self._log = open(log, "wb")  # noqa: SIM115 - closed by close()
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, cwd=harness.ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        end = time.monotonic() + 300
        while not (match := re.search(told, self._said(log))):
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{command[:4]} did not start; {log} says why")
            time.sleep(0.2)
        self.port = int(match[1])

    def _said(self, log: Path) -> str:
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        with contextlib.suppress(TypeError):  # nothing there yet
            self._log.write(self.process.stdout.read() or b"")
        self._log.flush()
        return log.read_text(errors="replace")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def rss(self) -> float:
        """Resident memory, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) / 1e3  # type: ignore[index]

    def close(self) -> int:
        """Ends the process; returns its status."""
        self.process.terminate()
        status = self.process.wait(60)
        self._log.close()
        return status


@dataclass
class Seen:
    """All that clients saw."""

    first_s: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: list[tuple[int, list[int]]] = field(default_factory=list)
    """(number of the prompt, ids) of answers that were read to their end."""
    left: int = 0
    errors: list[str] = field(default_factory=list)


async def ask(
    port: int, ids: list[int], most: int, leave_at: int | None, seen: Seen, never: tuple = ()
):
    """One stream of llama.cpp's /completion; the ids, or None where the client left.

    `never` are ids that are not chosen.
    """
    asked = {"prompt": ids, "stream": True, "n_predict": most, "temperature": 0, "top_k": 0,
             "top_p": 1, "min_p": 0, "return_tokens": True, "cache_prompt": True}  # fmt: skip
    if never:
        asked["logit_bias"] = {str(i): -100 for i in never}
    body = json.dumps(asked).encode()
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    tokens: list[int] = []
    try:
        if leave_at == 0:  # within the queue, or while the prompt is read
            await asyncio.sleep(random.random() * 0.2)
            return None
        while line := await reader.readline():
            if not line.startswith(b"data: "):
                if line.startswith(b"HTTP/1.1") and b" 200 " not in line:
                    seen.errors.append(line.decode().strip())
                continue
            event = json.loads(line[6:])
            if "error" in event:
                seen.errors.append(str(event["error"])[:200])
                return None
            if event["stop"]:
                return tokens
            if not tokens:
                seen.first_s.append(time.monotonic() - began)
            tokens += event["tokens"]
            seen.tokens += len(event["tokens"])
            if leave_at is not None and len(tokens) >= leave_at:
                return None
        seen.errors.append("a stream broke off")
        return None
    finally:
        writer.close()


async def load(
    port: int, prompts, most: int, clients: int, seconds: float, leave: float, probe, fresh: bool
):
    """Streams for some seconds; (what was seen, seconds, readings of `probe`).

    With `fresh` a prompt is asked once; when there is none left, the load ends.
    """
    seen, free = Seen(), list(range(len(prompts)))
    random.Random(1).shuffle(free)
    began = time.monotonic()
    readings = []

    async def client(number: int) -> None:
        rng = random.Random(number)
        while free and time.monotonic() - began < seconds:
            prompt = free.pop(0)
            leave_at = rng.randint(0, most - 1) if rng.random() < leave else None
            try:
                tokens = await ask(port, prompts[prompt], most, leave_at, seen)
            except OSError as error:
                seen.errors.append(str(error))
                tokens = None
            if tokens is None:
                seen.left += leave_at is not None
            else:
                seen.answers.append((prompt, tokens))
            if not fresh:
                free.append(prompt)

    async def watch() -> None:
        while True:
            readings.append(probe())
            await asyncio.sleep(max(0.5, seconds / 20))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(clients)))
    watching.cancel()
    return seen, time.monotonic() - began, readings


def rate(seen: Seen, seconds: float) -> dict:
    """The figures of one load."""
    first = sorted(seen.first_s) or [float("nan")]
    return {
        "tokens_per_s": round(seen.tokens / seconds, 1),
        "ttft_p50_ms": round(first[len(first) // 2] * 1e3, 1),
        "ttft_p99_ms": round(first[min(len(first) - 1, len(first) * 99 // 100)] * 1e3, 1),
        "answers": len(seen.answers),
        "left": seen.left,
        "lost": len(seen.errors),
        "errors": seen.errors[:3],
    }


def gauge(server: Server, name: str) -> float:
    """The sum of a number of /metrics over its labels."""
    lines = server.get("/metrics").splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[ {{]", line))


def ours(run: Path, slots: int, folder: Path, args: argparse.Namespace) -> Server:
    """`gchat serve` with so many slots."""
    command = [sys.executable, "-m", "gchat", "serve", "--run", f"model={run}", "--port", 0,
               "--slots", slots, "--weights", args.weights, "--max-queue", 1000]  # fmt: skip
    return Server(command, folder / f"gchat{slots}.log", told=r"http://127.0.0.1:(\d+)/v1")


def check(server: Server, seen: Seen, prompts, most: int, limit: int | None) -> dict:
    """Every finished answer, or the first `limit`, against the one to its prompt alone."""
    alone: dict[int, list[int]] = {}
    wrong = 0
    answers = seen.answers[:limit]
    for prompt, tokens in answers:
        if prompt not in alone:
            alone[prompt] = asyncio.run(ask(server.port, prompts[prompt], most, None, Seen()))
        wrong += alone[prompt] != tokens
    return {"compared": len(answers), "prompts": len(alone), "mixed": wrong}


def idle(server: Server) -> None:
    """Waits until nobody has a row, for 30 s at most."""
    end = time.monotonic() + 30
    while gauge(server, "gchat_working") + gauge(server, "gchat_waiting"):
        if time.monotonic() > end:
            break
        time.sleep(0.05)


def left_alone(server: Server, ids: list[int]) -> dict:
    """Calls of the engine after the only client has left, and those for its whole answer."""
    never = tuple(json.loads(server.get("/tokenizer_info"))["eos_token_ids"])
    room = json.loads(server.get("/props"))["default_generation_settings"]["n_ctx"] - len(ids)

    def steps(leave_at: int | None) -> float:
        before = gauge(server, "gchat_engine_steps")
        asyncio.run(ask(server.port, ids, min(LONG, room), leave_at, Seen(), never))
        if leave_at is not None:
            before = gauge(server, "gchat_engine_steps")
        idle(server)
        return gauge(server, "gchat_engine_steps") - before

    return {"steps_after_leaving": steps(1), "steps_wanted": steps(None)}


def settled(server: Server) -> dict:
    """The state once nobody asks any more."""
    idle(server)
    before = gauge(server, "gchat_engine_steps")
    time.sleep(1)
    return {
        "rows_taken": gauge(server, "gchat_working"),
        "waiting": gauge(server, "gchat_waiting"),
        "steps_afterwards": gauge(server, "gchat_engine_steps") - before,
    }


def prepare(folder: Path, run: Path | None, depth: int) -> Path:
    """The run that is asked: the one given, or a small one made here."""
    if run is not None:
        return run
    import runs

    data = folder / "data"
    data.mkdir()
    runs.make_data(data, vocab_size=400)
    made = folder / "run"
    command = [
        "-m", "gchat.train", "--data-dir", data, "--run-dir", made, "--model.depth",
        depth, "--model.dim", 64 * depth, "--model.head-dim", 64, "--model.hidden", 192 * depth,
        "--model.seq-len", 512,
        "--model.compute-dtype", "float32", "--batch-size", 4, "--max-steps", 5, "--warmup", 1,
    ]  # fmt: skip
    subprocess.run([sys.executable, *map(str, command)], cwd=harness.ROOT, check=True,
                   stdout=sys.stderr)  # fmt: skip
    return made


def make_prompts(run: Path, count: int) -> list[list[int]]:
    """Prompts of 8 to 200 tokens, no two alike."""
    import runs
    from gchat.tokenizer import Tokenizer

    tokenizer, rng = Tokenizer.load(run / "tokenizer.json"), random.Random(0)
    words = runs.TEXT.split()
    texts = (" ".join(rng.choices(words, k=rng.randint(6, 120))) for _ in range(count))
    return [[tokenizer.bos_id, *tokenizer.encode(f"{i} {text}")[:200]]
            for i, text in enumerate(texts)]  # fmt: skip


def main(args: argparse.Namespace) -> dict:
    """`--quick`: a smaller model, 16 clients for 10 s."""
    clients, seconds = (16, 10) if args.quick else (args.clients, args.seconds)
    slots = args.slots or clients
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = prepare(folder, args.run, 2 if args.quick else 4)
        count = args.prompts or 4 * clients
        prompts = make_prompts(run, 100 * count if args.fresh else count)
        most, made = args.tokens, {"clients": clients, "slots": slots, "load_s": seconds}
        server = ours(run, slots, folder, args)
        try:
            loading = load(
                server.port, prompts, most, clients, seconds, LEAVE, server.rss, args.fresh
            )
            seen, took, memory = asyncio.run(loading)
            steady = memory[len(memory) // 5 :]
            made |= rate(seen, took) | {"rss_mb": [round(steady[0]), round(steady[-1])]}
            made |= settled(server) | left_alone(server, prompts[0])
            made |= check(server, seen, prompts, most, count if args.fresh else None)
        finally:
            made["exit_status"] = server.close()
        single = ours(run, 1, folder, args)
        try:
            loading = load(single.port, prompts, most, 1, seconds / 4, 0, single.rss, args.fresh)
            made["serial"] = rate(*asyncio.run(loading)[:2])
        finally:
            single.close()
        made["ratio_to_serial"] = round(made["tokens_per_s"] / made["serial"]["tokens_per_s"], 2)
        if args.gguf:
            made["llama_cpp"] = theirs(args, prompts, clients, seconds, slots, folder)
            ratio = made["tokens_per_s"] / made["llama_cpp"]["tokens_per_s"]
            made["ratio_to_llamacpp"] = round(ratio, 2)
        ok = not (made["mixed"] or made["lost"] or made["rows_taken"] or made["waiting"]
                  or made["steps_afterwards"] or made["exit_status"])  # fmt: skip
        made["all_well"] = ok and steady[-1] <= 1.05 * steady[0]
    return made


def theirs(args, prompts, clients: int, seconds: float, slots: int, folder: Path) -> dict:
    """The same load on llama.cpp's server."""
    cores = os.cpu_count()
    if Path(args.llama).name.startswith("llama-server"):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [args.llama, "--model", args.gguf, "--port", port, "--parallel", slots,
                   "--ctx-size", slots * WINDOW, "--threads", cores]  # fmt: skip
    else:
        script = harness.ROOT / "tests/llama_server.py"
        command = [args.llama, script, args.gguf, "--slots", slots, "--window", WINDOW,
                   "--threads", cores]  # fmt: skip
    server = Server(command, folder / "llama.log", told=r"http://127.0.0.1:(\d+)")
    try:
        loading = load(
            server.port, prompts, args.tokens, clients, seconds, LEAVE, server.rss, args.fresh
        )
        return rate(*asyncio.run(loading)[:2])
    finally:
        server.process.kill()
        server.process.wait()


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", type=Path, help="folder of a run")
    parser.add_argument("--gguf", type=Path, help="the same weights, for llama.cpp's server")
    parser.add_argument("--llama", default=sys.executable,
                        help="llama-server, or a Python that has xllamacpp")  # fmt: skip
    parser.add_argument("--clients", type=int, default=64, help="streams at once")
    parser.add_argument("--slots", type=int, default=0, help="rows of the engine; clients' number")
    parser.add_argument("--prompts", type=int, default=0, help="different ones; 4 for each client")
    parser.add_argument("--fresh", action="store_true", help="ask no prompt twice, so that nothing "
                        "is read from a cache; --prompts is how many are checked")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=120, help="of the load")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, at most")
    parser.add_argument("--weights", default="float32", help="format of our weights")


if __name__ == "__main__":
    harness.run(main, __doc__, _arguments)
