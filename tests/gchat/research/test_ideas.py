"""Ideas: every patch fits this code, alone and in the list of `fast`; its own tests are slow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from clones import committed
from gaia.errors import ConfigError
from gchat import __main__
from gchat.research import ideas, patched

ROOT = Path(__file__).parents[3]
NAMES = ideas.names()
TESTED = [name for name in NAMES if list((ideas.FOLDER / name).glob("test_*.py"))]
MOST_LINES, MOST_FILES = 150, 2


def copied(place):
    """This tree's packages without what is built from them."""
    for package in ("gaia", "gchat"):
        ignore = shutil.ignore_patterns("__pycache__", "web", "speedrun.sh")
        shutil.copytree(ROOT / package, place / package, ignore=ignore)
    return place


def apply(place, name):
    for patch in ideas.read(name).patches:
        done = subprocess.run(
            ["git", "apply", str(patch)], cwd=place, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{patch.parent.name}: {done.stderr}"


def marks(name):
    """Ideas that a patch says it is, with what each changes."""
    text = (ideas.FOLDER / name / ideas.PATCH).read_text()
    return dict(re.findall(r'^\+IDEA_(\w+) = "(\w+)"$', text, re.MULTILINE))


def test_every_patch_names_its_idea():
    """A run of it records that name, and other code refuses it."""
    kinds = {}
    for name in NAMES:
        if (ideas.FOLDER / name / ideas.PATCH).exists():
            ((mark, kinds[name]),) = marks(name).items()
            assert mark == name.upper().replace("-", "_")
    training = {name for name, kind in kinds.items() if kind != "model"}
    assert training == {
        "fault-bf16-moments", "fault-bf16-weights", "token-superposition", "z-loss"
    }  # fmt: skip
    assert set(kinds.values()) == {"model", "training", "phases"}


def test_every_patch_fits_this_code(tmp_path):
    tree = copied(tmp_path / "tree")
    for name in NAMES:
        for patch in ideas.read(name).patches:
            if patch.parent.name != name:
                continue
            done = subprocess.run(
                ["git", "apply", "--check", str(patch)], cwd=tree, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{name}: {done.stderr}"
            rows = subprocess.run(
                ["git", "apply", "--numstat", str(patch)], cwd=tree, capture_output=True, text=True
            ).stdout.splitlines()
            changed = sum(int(n) for row in rows for n in row.split("\t")[:2])
            assert len(rows) <= MOST_FILES, (name, rows)
            assert changed <= MOST_LINES, (name, changed)
    apply(tree, "fast")  # one on top of the other
    for path in ("gchat/model.py", "gaia/layers.py", "gaia/kernels/cross_entropy.py"):
        compile((tree / path).read_text(), path, "exec")


def test_the_parts_of_fast_fit_in_the_order_that_a_refusal_names_them(tmp_path):
    tree = copied(tmp_path / "tree")
    parts = sorted(patch.parent.name for patch in ideas.read("fast").patches)
    for name in parts:
        apply(tree, name)
    code = "".join(path.read_text() for path in tree.rglob("*.py"))
    missing = [name for name in parts for mark in marks(name) if f"\nIDEA_{mark} = " not in code]
    assert len(parts) == 7 and not missing


def test_ideas_are_listed_with_a_page_each():
    assert sorted(path.name for path in ideas.FOLDER.iterdir() if path.is_dir()) == NAMES
    for name in NAMES:
        idea = ideas.read(name)
        assert idea.patches or idea.options
        assert f"+{name}" in (ideas.FOLDER / name / "README.md").read_text()


def written(folder, name, settings):
    (folder / name).mkdir(parents=True)
    (folder / name / "README.md").write_text(f"# {name}\n")
    (folder / name / "idea.yaml").write_text(settings)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ("part: [b]", "unknown field 'part'; use parts"),
        ("set: {data.vocab_size: 512}", "data.vocab_size is set; leave it out"),
        ("parts: b", "parts is 'b'"),
        ("parts: [b, a]", "a is a part of itself"),
        ("parts: [c]", "+c is no idea"),
        ("set: [x]", "set is"),
    ],
)
def test_wrong_settings_are_one_line(tmp_path, settings, named):
    written(tmp_path, "a", settings)
    written(tmp_path, "b", "set: {model.depth: 2}\n")
    with pytest.raises(ConfigError) as refused:
        ideas.read("a", tmp_path)
    assert named in str(refused.value) and "\n" not in str(refused.value)


def test_parts_come_first(tmp_path):
    written(tmp_path, "a", "parts: [b]\nset: {model.depth: 3}\npreset: cpu\n")
    written(tmp_path, "b", "set: {model.depth: 2}\n")
    (tmp_path / "b" / ideas.PATCH).write_text("")
    idea = ideas.read("a", tmp_path)
    assert idea.options == ("--model.depth=2", "--model.depth=3")
    assert [patch.parent.name for patch in idea.patches] == ["b"]
    assert idea.preset == "cpu"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "names no idea"),
        (["fast", "train"], "names no verb"),
        (["+fast"], "names no verb"),
        (["+fsat", "train"], "perhaps you meant .fast"),
        (["+relu2", "sweep", "x.yaml"], r"gchat sweep trains source trees of its own, without .re"),
        (["+fast", "ladder"], r"compare main \+fast, or make a branch of it"),
        (["+fast", "compare", "main"], "source trees of its own"),
        (["+fast", "research", "run"], "source trees of its own"),
    ],
)
def test_with_says_what_is_missing(words, said):
    with pytest.raises(ConfigError, match=said):
        patched.command(words)


@pytest.fixture
def laid_out(tmp_path, monkeypatch):
    """A clone of two files, and the places of the trees that `research with` lays out in it."""
    monkeypatch.chdir(committed(tmp_path / "clone", {"gchat/model.py": "a = 1\n"}))
    monkeypatch.setattr(patched.worktrees, "apply", lambda place, patch: None)
    return lambda name: Path(patched.command([name, "train"])[1]["PYTHONPATH"])


def test_with_is_not_led_to_a_branch_by_the_name_of_an_idea(laid_out):
    assert (laid_out("+relu2") / "gchat" / "model.py").exists()
    subprocess.run(["git", "branch", "relu2"], check=True)
    with pytest.raises(ConfigError, match="relu2 is a branch of this clone, too"):
        laid_out("+relu2")


def test_with_finds_the_tree_of_many_ideas(laid_out):
    """Whose names together are more than a folder's name may be."""
    many = "+" + "+".join(name for name in NAMES if len(ideas.read(name).patches) == 1)
    assert len(many) > 150 and (laid_out(many) / "gchat" / "model.py").exists()


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_with_has_help(word, capsys):
    with pytest.raises(SystemExit, match="0"):
        __main__.main(["research", "with", word])
    assert "gchat research with +fast train" in capsys.readouterr().out


def test_the_options_of_ideas_come_before_what_is_typed():
    both = [ideas.read("fast"), ideas.read("windows")]
    own = [*both[0].options, "--model.window_pattern=SSSL"]
    assert "--optim.lr=0.016" in own
    words = patched._with_options(["--depth", "4"], both)
    assert words == ["cpu", *own, "--depth", "4"]
    words = patched._with_options(["baseline", "--depth", "4"], both)
    assert words == ["baseline", *own, "--depth", "4"]


@pytest.mark.slow
def test_fast_is_trained_and_sampled_by_one_command_each(tmp_path, data_dir, user_environment):
    """Decoding too: value embeddings beside packed matrices, smear's cache, capped logits."""
    clone, tiny = tmp_path / "clone", "--model.dim=32 --model.head-dim=16 --model.hidden=64"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    tiny += " --model.depth=2 --model.seq-len=64 --training.batch-size=2 --training.steps=4"
    tiny += " --warmup=1 --eval.tokens=400 --eval.sample-tokens=4"
    environment = user_environment | {"PYTHONPATH": str(clone)}

    def with_fast(*words):
        command = [sys.executable, "-m", "gchat", "research", "with", "+fast", *words]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    said = with_fast("train", "--data-dir", str(data_dir), "--run-dir", "runs/x", *tiny.split())
    assert "step 4" in said
    answer = with_fast(
        "sample", "--run", "runs/x", "--prompt", "The", "--max-tokens", "5", "--json"
    )
    assert "text" in answer
    assert len(list((clone / "runs" / "with").iterdir())) == 1  # one tree for both
    refusals = {
        ("sample", "--run", "runs/x", "--prompt", "The"): "use gchat research with +embed-norm+eng",
        ("research", "with", "+fast", "export", "hf", "--run", "runs/x", "--out", "x"): (
            "this code has embed-norm, engram"
        ),
    }
    for words, said in refusals.items():
        command = [sys.executable, "-m", "gchat", *words]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and said in done.stderr, done.stderr[-3000:]
    assert not (clone / "x").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTED)
def test_an_idea_keeps_what_its_page_says(tmp_path, name, user_environment):
    """The idea's own tests, in a tree that its patch is applied to."""
    tree = copied(tmp_path / "tree")
    apply(tree, name)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    (tests,) = (tree / "gchat" / "research" / "examples" / name).glob("test_*.py")
    command = [sys.executable, "-m", "pytest", "-q", str(tests), "-p", "no:cacheprovider"]
    environment = user_environment | {"PYTHONPATH": os.pathsep.join([str(tree)])}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
