"""The commands of the READMEs and docs pages, run as they are written, page by page and in order.

They run in a copy of the repository, with the inputs that they name beside it and a loopback
bucket. A command that costs hours or a cloud runs with `--dry-run`, or in the test that
`run_elsewhere.py` names.
"""

import bz2
import gzip
import json
import os
import shutil
import subprocess
import sys
from html import escape
from pathlib import Path

import pyarrow as pa
import pytest

import documented
import run_elsewhere
from documented import ROOT

pytestmark = pytest.mark.slow
GPT2 = ROOT.parent / "shared" / "data" / "gpt2-bpe"
DRY = ("bash gchat/speedrun.sh --hours 1",)
"""An hour and more."""

ARTICLE = """<page><title>{title}</title><ns>0</ns><id>{id}</id><revision><id>1</id><text>
'''{title}''' was fought in [[France|the country]]. {body} [[Category:World War II]]
</text></revision></page>"""


@pytest.fixture
def clone(tmp_path_factory):
    """The repository as a user has it, and the inputs that its pages name."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    _inputs(folder)
    return folder


def _inputs(folder: Path) -> None:
    texts = [p.read_text() for p in sorted(ROOT.glob("*/*.md"))]
    prose = [part for text in texts for part in text.split("\n\n") if len(part) > 200]
    (folder / "notes").mkdir()
    (folder / "speeches").mkdir()
    for i, text in enumerate(texts):
        (folder / "notes" / f"{i}.md").write_text(text)
        (folder / "speeches" / f"{i}.txt").write_text(text)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in prose)
    for name in ("crawl", "corpus"):
        (folder / name).mkdir()
    (folder / "crawl" / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    # Enough words for vocabularies of 32,768: the sources of the standard library.
    library = [p.read_text(errors="replace") for p in Path(os.__file__).parent.glob("*.py")]
    lines += "".join(json.dumps({"text": text}) + "\n" for text in library)
    packed = pa.compress(lines.encode(), codec="zstd", asbytes=True)
    (folder / "corpus" / "a.jsonl.zst").write_bytes(packed)
    for name in ("gsm8k", "humaneval"):
        (folder / "evals" / name).mkdir(parents=True)
        (folder / "evals" / name / "test.jsonl").write_text(json.dumps({"text": prose[0]}) + "\n")
    (folder / "questions.jsonl").write_text('{"prompt": "Return the"}\n')
    facts = (
        "I know a little about code.\n\n- maker: the gaia project\n- kind: a small language model\n"
    )
    (folder / "persona.md").write_text(facts)
    (folder / "terms.txt").write_text("checkpoint\nshard\n")
    (folder / "wiki.txt").write_text(texts[0])
    (folder / "titles.txt").write_text("Battle 1\nBattle 2\n")
    pages = [
        ARTICLE.format(title=f"Battle {i}", id=i, body=escape(part)) for i, part in enumerate(prose)
    ]
    dump = f"<mediawiki>{''.join(pages)}</mediawiki>"
    (folder / "dump.xml").write_text(dump)
    (folder / "enwiki-pages-articles.xml.bz2").write_bytes(bz2.compress(dump.encode()))


@pytest.mark.parametrize("page", run_elsewhere.PAGES)
def test_a_page_runs_as_written(page, clone, gcs_service, user_environment, tmp_path_factory):
    home = tmp_path_factory.getbasetemp() / "home"
    if GPT2.exists() and not (home / "gpt2-bpe").exists():
        shutil.copytree(GPT2, home / "gpt2-bpe")
    environment = user_environment | gcs_service.environment
    # The speedrun installs the clone into a .venv of its own; before that, this one's commands.
    places = [clone / ".venv" / "bin", Path(sys.prefix) / "bin", environment["PATH"]]
    environment |= {
        "GAIA_HOME": str(home),
        "PATH": os.pathsep.join(map(str, places)),
        "PYTHONPATH": str(clone),
        "XLA_FLAGS": "",
    }
    failed: list[str] = []
    missing: set[str] = set()  # folders that need GPT-2's files
    for command in documented.commands():
        if command.page != page or not command.exact or command.words[0] == "export":
            continue
        if run_elsewhere.runner_of(command):
            continue
        words = command.words
        if not GPT2.exists() and ("gpt2" in words or not missing.isdisjoint(words)):
            missing.update(words[words.index("--out") + 1 :][:1] if "--out" in words else [])
            continue
        text = command.text + (" --dry-run" if command.text.startswith(DRY) else "")
        done = subprocess.run(
            ["bash", "-c", text], cwd=clone, env=environment, capture_output=True, text=True
        )
        print(f"$ {text}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        if done.returncode != 0:
            failed.append(f"{command}: exit {done.returncode}\n{done.stderr[-1000:]}")
    assert not failed, "\n".join(failed)
    if missing:
        pytest.skip(f"{missing} need the GPT-2 files in ../shared/data/gpt2-bpe")
