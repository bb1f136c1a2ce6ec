"""The commands that the READMEs and docs pages show, and a parser for each that runs nothing.

Fenced commands are exact. Those within a line are patterns: `[x]` may be left out, of `a|b` the
first is taken, words in capitals stand for the user's own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parent.parent
SYSTEM = {
    "apt", "cd", "certbot", "cp", "curl", "docker", "git", "mkdir", "nginx", "rm", "sed",
    "systemctl", "useradd",
}  # fmt: skip
"""Programs of the system, whose commands are run by the tests of `deploy/` where they can be."""

PROGRAMS = ("gchat", "gml", "gaia-metrics", "python", "bash", "deploy/")


class Command(NamedTuple):
    page: str
    line: int
    text: str
    exact: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)


class ParsedWhole(BaseException):
    """Raised by the patched parsers once the arguments were taken: nothing may run after it."""


def pages() -> list[Path]:
    """The READMEs and docs pages; the log of experiments is no guide."""
    folders = ("", "*/", "docs/**/", "deploy/*/", "gchat/research/examples/*/")
    files = [file for folder in folders for file in ROOT.glob(f"{folder}*.md")]
    skipped = {"EXPERIMENTS.md"}
    return sorted({f for f in files if f.name not in skipped and not f.parent.name.startswith(".")})


def commands() -> list[Command]:
    """Every command of every page, in the pages' order."""
    return [command for page in pages() for command in _of_page(page)]


def _of_page(page: Path) -> Iterator[Command]:
    name, text = str(page.relative_to(ROOT)), page.read_text()
    for block in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        first = text[: block.start()].count("\n") + 2
        if block[1] == "bash" or (not block[1] and _is_command(block[2])):
            yield from _lines(name, first, block[2])
    prose = re.sub(r"^```.*?^```", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    for span in re.finditer(r"`([^`\n]+)`", prose):
        if _is_command(span[1]) and " " in span[1]:
            line = prose[: span.start()].count("\n") + 1
            for one in span[1].split(" | ") if span[1].startswith("gaia-metrics") else [span[1]]:
                words = one if one.startswith(PROGRAMS) else f"gaia-metrics {one}"
                yield Command(name, line, _plain(words), exact=False)


def _lines(page: str, first: int, block: str) -> Iterator[Command]:
    whole = block.replace("\\\n", "  ")
    for number, line in enumerate(whole.splitlines()):
        if words := shlex.split(line, comments=True):
            del words
            yield Command(page, first + number, line.strip(), exact=True)


def _is_command(text: str) -> bool:
    return bool(re.match(r"(gchat|gml|gaia-metrics|python|bash) \S|deploy/\S+\.sh", text))


def _plain(pattern: str) -> str:
    """One command of a pattern such as `gml logs ID… [-f] [--a|b]`."""
    text = pattern.replace("\\|", "|").replace("…", "")
    text = re.sub(r"\[(CONFIG\.yaml|TYPE|DIR|WHERE|--field value ?)\]", "", text)
    text = re.sub(r"\bN\b", "8", re.sub(r"[\[\]]", "", text))
    return re.sub(r"([\w-]+)(\|[\w-]+)+", r"\1", text)


def parse(command: Command) -> None:
    """Lets the program of a command take its arguments, and runs nothing.

    Raises:
        AssertionError: the program refuses them, or no program is known for the command.
    """
    words = command.words
    if words[0] == "sudo":
        words = words[1:]
        while words[0].startswith("-"):
            words = words[2 if words[0] == "-u" else 1 :]
    words = [words[0].rpartition("/.venv/bin/")[2].removeprefix(".venv/bin/"), *words[1:]]
    if words[:2] == ["cd", "deploy"]:
        return _check_service(words)
    if words[0] in SYSTEM:
        return _check_files(words, "deploy/", command)
    if words[0] == "export":  # variables: their names must be read somewhere
        return _check_variable(words[1])
    if words[:3] == ["uv", "tool", "install"]:
        return _check_extra(words[3])
    if words[0] in ("python", "python3"):
        return _parse_module(words[1:], command)
    if words[0] == "bash" or words[0].startswith("deploy/"):
        return _check_script(words[words[0] == "bash" :], command)
    parser = {"gchat": _parse_gchat, "gml": _parse_gml, "gaia-metrics": _parse_metrics}
    assert words[0] in parser, f"{command}: no parser for `{words[0]}`; add one here"
    return parser[words[0]](words[1:], command)


def _parse_gchat(words: list[str], command: Command) -> None:
    from gaia.errors import GaiaError
    from gchat.__main__ import _verb

    with _parsers_stop(), contextlib.suppress(ParsedWhole):
        try:
            _verb(words)
        except GaiaError as error:
            missing = re.search(
                r"[Rr]equired|[Mm]issing|needs a run|no command is given", str(error)
            )
            assert missing and not command.exact, f"{command}: {error}"
            return
        except SystemExit as end:
            assert end.code in (0, None), f"{command}: exit {end.code}"
            return
        raise AssertionError(f"{command}: it ran without a parser")


def _parse_gml(words: list[str], command: Command) -> None:
    from typer.main import get_command

    from gml.cli.entry import build

    ends = words.index("--") if "--" in words else len(words)
    kept = [w for i, w in enumerate(words) if i > ends or w not in ("--debug", "--yes", "-y")]
    _parse_click(get_command(build()), "gml", kept, command)


def _parse_metrics(words: list[str], command: Command) -> None:
    from typer.main import get_command

    from gaia_metrics.cli import app

    _parse_click(get_command(app), "gaia-metrics", words, command)


def _parse_click(program, name: str, words: list[str], command: Command) -> None:
    # An option whose callback acts at once, and acts on the home folder.
    kept = [word for word in words if word != "--install-completion"]
    if kept != words and not kept:
        return
    try:
        with program.make_context(name, kept) as context:
            rest = [*context._protected_args, *context.args]
            if hasattr(program, "resolve_command") and rest:
                verb, chosen, left = program.resolve_command(context, rest)
                _parse_click(chosen, f"{name} {verb}", left, command)
    except Exception as error:  # typer has a copy of click, with exceptions of its own
        if getattr(error, "exit_code", None) == 0:
            return  # a help text was asked for
        if not hasattr(error, "format_message"):
            raise
        incomplete = type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError")
        incomplete = incomplete or "requires an argument" in error.format_message()
        assert incomplete and not command.exact, f"{command}: {error.format_message()}"


def _parse_module(words: list[str], command: Command) -> None:
    if words[:2] == ["-m", "gchat.train"]:  # the same program by another name
        return _parse_gchat(["train", *words[2:]], command)
    if words[:2] in (["-m", "pip"], ["-m", "venv"]):
        missing = [
            w for w in words[2:] if w.startswith("requirements/") and not (ROOT / w).exists()
        ]
        assert not missing, f"{command}: no file {missing[0]}"
        return None
    if words[:2] == ["-m", "pytest"]:
        missing = [word for word in words[2:] if not (ROOT / word).exists()]
        assert not missing, f"{command}: no file {missing[0]}"
        return None
    module = words[0] == "-m"
    target, arguments = (words[1], words[2:]) if module else (words[0], words[1:])
    if not module:
        assert (ROOT / target).is_file(), f"{command}: no file {target}"
    before = sys.argv
    sys.argv = [target, *arguments]
    try:
        with (
            _parsers_stop(),
            mock.patch.dict(sys.modules),
            contextlib.suppress(ParsedWhole),
        ):
            if module:
                sys.modules.pop(target, None)
                runpy.run_module(target, run_name="__main__", alter_sys=False)
            else:
                runpy.run_path(str(ROOT / target), run_name="__main__")
            raise AssertionError(f"{command}: it ran without a parser")
    except SystemExit as end:
        raise AssertionError(f"{command}: exit {end.code}") from None
    finally:
        sys.argv = before


@contextlib.contextmanager
def _parsers_stop() -> Iterator[None]:
    """The parsers of our programs end in ParsedWhole where they would return."""
    import tyro

    from gaia.processes.group import DistributedConfig, joined
    from gchat import config, speedrun, train
    from gchat.__main__ import _verb
    from gchat.config import load
    from gchat.lifecycle import command as lifecycle
    from gchat.posttrain import start
    from gchat.research import driver, ideas, patched
    from gchat.run import mirror
    from gchat.scaling.cli import PlanOptions

    def stopping(parser, first=()):
        def call(of, *args, **kwargs):
            result = parser(of, *args, **kwargs)
            # A first one hands what it does not know to the next; tyro has parsers inside.
            if of in first or type(of).__module__.startswith("tyro"):
                return result
            raise ParsedWhole

        return call

    def with_ideas(words):  # no tree is laid out
        for name in words[0].removeprefix("+").split("+"):
            ideas.read(name)
        _verb(words[1:])

    parse_args = argparse.ArgumentParser.parse_args
    first = (DistributedConfig, PlanOptions, speedrun.Options)
    with (
        mock.patch.object(tyro, "cli", stopping(tyro.cli, first)),
        mock.patch.object(argparse.ArgumentParser, "parse_args", stopping(parse_args)),
        mock.patch.object(speedrun, "speedrun", lambda options, rest, group: load(rest)),
        mock.patch.object(train, "joined", lambda processes: joined(DistributedConfig())),
        mock.patch.object(patched, "run", with_ideas),
        mock.patch.dict(os.environ, {driver._DRIVEN: "1"}),  # no other tree takes over
        mock.patch.object(os, "execve", side_effect=AssertionError("a program was begun")),
        mock.patch.object(start, "handed_down", lambda path: {}),
        mock.patch.object(lifecycle, "check_files"),
        mock.patch.object(lifecycle, "folder_of", lambda words: Path("runs/x")),
        mock.patch.object(lifecycle, "all_stages", lambda own, rest, *_: speedrun.main(rest)),
        mock.patch.object(config, "with_model_of_base", lambda tree, *_: tree),  # reads that run
        mock.patch.object(mirror, "fetch"),  # looks into the bucket first, for the run's own config
        mock.patch.object(sys, "path", [str(ROOT / "tests" / "benchmarks"), *sys.path]),
    ):
        yield


def _check_script(words: list[str], command: Command) -> None:
    script = ROOT / words[0]
    assert script.is_file(), f"{command}: no file {words[0]}"
    if words[0] == "gchat/speedrun.sh":
        return _parse_gchat(["speedrun", *words[1:]], command)
    text = script.read_text()
    for option in (w for w in words[1:] if w.startswith("--")):
        assert re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text), (
            f"{command}: {words[0]} does not know {option}"
        )


def _check_files(words: list[str], folder: str, command: Command) -> None:
    missing = [w for w in words if w.startswith(folder) and not [*ROOT.glob(w)]]
    assert not missing, f"{command}: no file {missing[0]}"


def _check_variable(assignment: str) -> None:
    name = assignment.partition("=")[0]
    if name.startswith("OTEL_"):
        name = name.removesuffix("_CERTIFICATE").removesuffix("_HEADERS")
    hits = subprocess.run(
        ["grep", "-rlE", "--include=*.py", name, "gaia", "gchat", "gml", "gaia_metrics"],
        cwd=ROOT,
        capture_output=True,
    )
    assert hits.stdout, f"nothing reads the variable {name}"


def _check_service(words: list[str]) -> None:
    import yaml

    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert words[-1] in services, f"deploy/compose.yaml has no service {words[-1]}"


def _check_extra(requirement: str) -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in re.findall(r"[\w-]+", requirement.partition("[")[2]):
        assert extra in project["optional-dependencies"], f"pyproject.toml has no extra {extra}"
