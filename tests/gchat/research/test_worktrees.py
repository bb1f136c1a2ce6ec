"""Source trees of branches: merges, judges, changes that are taken or left out."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gaia.errors import ConfigError
from gchat.research import ideas, worktrees
from gchat.research.worktrees import TreeError, make_tree


def git(folder, *words):
    author = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    return subprocess.run(
        ["git", "-C", str(folder), *author, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def clone(tmp_path):
    """A clone with main and three branches: an idea, another file, and a cheating judge."""
    root = tmp_path / "clone"
    for name, text in (
        ("gchat/model.py", "a = 1\n\n\n\n\nb = 2\n"),
        ("gchat/evals/bpb.py", "honest = True\n"),
        ("gchat/run/scorer.py", "s = 1\n"),
        ("gchat/run/names.py", "n = 1\n"),
        ("gaia_metrics/recording/run.py", "value = 1.0\n"),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "main")
    for branch, name, text in (
        ("idea", "gchat/model.py", "a = 3\n\n\n\n\nb = 2\n"),
        ("other", "gchat/model.py", "a = 1\n\n\n\n\nb = 4\n"),
        ("clash", "gchat/model.py", "a = 9\n\n\n\n\nb = 2\n"),
        ("cheat", "gchat/evals/bpb.py", "honest = False\n"),
        ("louder", "gaia_metrics/recording/run.py", "value = 0.9\n"),
    ):
        git(root, "checkout", "-q", "-b", branch, "main")
        (root / name).write_text(text)
        git(root, "commit", "-qam", branch)
    git(root, "checkout", "-q", "main")
    return root


@pytest.fixture
def first(clone, tmp_path):
    return make_tree(clone, "main", tmp_path / "code", None)


def test_a_branch_and_a_merge(clone, first, tmp_path):
    idea = make_tree(clone, "idea", tmp_path / "code", first)
    assert (tmp_path / "code" / "idea" / "gchat" / "model.py").read_text().startswith("a = 3")
    assert (idea.size, idea.notes) == ((1, 1, 1), ())
    both = make_tree(clone, "idea+other", tmp_path / "code", first)
    text = (tmp_path / "code" / "idea+other" / "gchat" / "model.py").read_text()
    assert text == "a = 3\n\n\n\n\nb = 4\n"
    assert both.size == (1, 2, 2)
    assert git(clone, "status", "--porcelain") == ""


def test_a_branch_does_not_grade_itself(clone, first, tmp_path):
    tree = make_tree(clone, "cheat", tmp_path / "code", first)
    judge = tmp_path / "code" / "cheat" / "gchat" / "evals" / "bpb.py"
    assert judge.read_text() == "honest = True\n"
    assert tree.notes == ("gchat/evals/bpb.py of cheat counts for nothing: main's judges",)
    assert tree.size == (0, 0, 0)


def test_a_branch_does_not_write_its_own_figures(clone, first, tmp_path):
    tree = make_tree(clone, "louder", tmp_path / "code", first)
    wrote = tmp_path / "code" / "louder" / "gaia_metrics" / "recording" / "run.py"
    assert wrote.read_text() == "value = 1.0\n"
    assert "gaia_metrics/recording/run.py of louder counts for nothing" in tree.notes[0]


def test_a_branch_does_not_grade_itself_with_new_files(clone, first, tmp_path):
    """A package `bpb` would be imported in place of the module beside it."""
    added = "gchat/evals/bpb/__init__.py"
    git(clone, "checkout", "-q", "-b", "adds", "main")
    (clone / added).parent.mkdir()
    (clone / added).write_text("honest = False\n")
    git(clone, "rm", "-q", "gchat/run/names.py")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "adds")
    git(clone, "checkout", "-q", "main")
    (clone / added).parent.mkdir()
    (clone / added).write_text("honest = 'untracked'\n")
    for name, place, rest in (("adds", "adds", ", gchat/run/names.py"), (".", "working tree", "")):
        tree = make_tree(clone, name, tmp_path / "code", first)
        assert not (tmp_path / "code" / place / added).exists()
        assert (tmp_path / "code" / place / "gchat" / "run" / "names.py").exists()
        assert f"{added}{rest} of {name} counts for nothing: main's judges" in tree.notes
        assert tree.size == (0, 0, 0)


@pytest.mark.parametrize("added", ["gchat/run/names/__init__.py", "gchat/run/scorer/__init__.py"])
def test_a_package_does_not_hide_a_judge(clone, first, tmp_path, added):
    git(clone, "checkout", "-q", "-b", "adds", "main")
    (clone / added).parent.mkdir()
    (clone / added).write_text("honest = False\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "adds")
    tree = make_tree(clone, "adds", tmp_path / "code", first)
    assert not (tmp_path / "code" / "adds" / added).exists()
    assert tree.notes == (f"{added} of adds counts for nothing: main's judges",)


def test_what_the_figures_rest_on_is_said_where_a_branch_changes_it(clone, first, tmp_path):
    files = (
        "gchat/config/__init__.py", "gchat/model_shape.py", "gchat/run/progress.py",
        "gchat/run/training_data.py", "gchat/train.py", "gchat/train_step.py",
    )  # fmt: skip
    git(clone, "checkout", "-q", "-b", "loss", "main")
    for file in files:
        (clone / file).parent.mkdir(parents=True, exist_ok=True)
        (clone / file).write_text("loss = 0\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "loss")
    tree = make_tree(clone, "loss", tmp_path / "code", first)
    said = f"the figures of loss rest on {', '.join(files)}, which it changes: read it"
    assert tree.notes == (said,)


def test_what_is_listed_as_judge_or_beside_it_is_there():
    """A module that was renamed would judge itself, and nobody would say so."""
    root = Path(__file__).parents[3]
    for name in (*worktrees.JUDGES, *worktrees.RESTS_ON):
        stem = root / name.removesuffix(".py")
        assert stem.is_dir() or stem.with_suffix(".py").is_file(), name


def test_a_merge_is_the_same_commit_each_time(clone, first, tmp_path, monkeypatch):
    """Its identity is that of its results: what was trained is not trained again."""
    one = make_tree(clone, "idea+other", tmp_path / "code", first)
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2011-01-01T00:00:00Z")
    assert make_tree(clone, "idea+other", tmp_path / "code", first).code == one.code


def test_no_two_names_share_a_folder(clone, first, tmp_path):
    git(clone, "branch", "x/y", "idea")
    git(clone, "branch", "x_y", "other")
    places = {make_tree(clone, name, tmp_path / "code", first).code.path for name in ("x/y", "x_y")}
    assert len(places) == 2


def test_the_user_s_git_configuration_changes_nothing(clone, tmp_path):
    git(clone, "config", "diff.noprefix", "true")
    git(clone, "config", "color.ui", "always")
    git(clone, "config", "diff.context", "0")  # without lines around it, it would go to the end
    (clone / "gchat" / "model.py").write_text("a = 1\n\nnew = 5\n\n\n\nb = 2\n")
    make_tree(clone, ".", tmp_path / "code", None)
    there = tmp_path / "code" / "working tree" / "gchat" / "model.py"
    assert there.read_text() == (clone / "gchat" / "model.py").read_text()


def test_a_branch_may_be_called_as_the_working_tree_is(clone, first, tmp_path):
    git(clone, "branch", "working-tree", "idea")
    (clone / "gchat" / "model.py").write_text("a = 5\n")
    here, there = (make_tree(clone, n, tmp_path / "code", first) for n in (".", "working-tree"))
    texts = [(Path(t.code.path) / "gchat" / "model.py").read_text()[:5] for t in (here, there)]
    assert texts == ["a = 5", "a = 3"]


def test_merges_need_no_key_and_run_no_hook(clone, first, tmp_path):
    """The user signs commits, checks signatures of what is merged, and has hooks."""
    for name in ("post-checkout", "pre-merge-commit", "commit-msg"):
        hook = clone / ".git" / "hooks" / name
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/hooked\nexit 1\n")
        hook.chmod(0o755)
    for field, value in (
        ("commit.gpgSign", "true"), ("gpg.program", "/bin/false"),
        ("merge.verifySignatures", "true"), ("apply.whitespace", "error"),
    ):  # fmt: skip
        git(clone, "config", field, value)
    make_tree(clone, "idea+other", tmp_path / "code", first)
    text = (tmp_path / "code" / "idea+other" / "gchat" / "model.py").read_text()
    assert text == "a = 3\n\n\n\n\nb = 4\n"
    (clone / "gchat" / "model.py").write_text("a = 5 \n")
    make_tree(clone, ".", tmp_path / "code", first)
    assert (tmp_path / "code" / "working tree" / "gchat" / "model.py").read_text() == "a = 5 \n"
    assert not (tmp_path / "hooked").exists()


def test_a_tree_is_measured_against_the_first_one_as_it_is(clone, shelf, tmp_path):
    """Not against its commit: the first one may hold uncommitted changes, or ideas."""
    git(clone, "checkout", "-q", "-b", "loss", "main")
    (clone / "gchat" / "train_step.py").write_text("loss = 0\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "loss")
    git(clone, "checkout", "-q", "main")
    (clone / "gchat" / "model.py").write_text("a = 3\n\n\n\n\nb = 2\nc = 3\n")
    (clone / "gchat" / "train_step.py").write_text("loss = 1\n")
    here = make_tree(clone, ".", tmp_path / "code", None)
    assert make_tree(clone, "idea", tmp_path / "code", here).size == (2, 0, 2)
    loss = make_tree(clone, "loss", tmp_path / "code", here)
    assert loss.size == (2, 2, 3)
    assert "the figures of loss rest on gchat/train_step.py" in loss.notes[0]
    whole = make_tree(clone, "+change", tmp_path / "code", None)
    assert make_tree(clone, "main", tmp_path / "code", whole).size == (1, 1, 1)


def test_the_working_tree_judges_as_it_is(clone, tmp_path):
    (clone / "gchat" / "evals" / "bpb.py").write_text("honest = 'as changed'\n")
    (clone / "gchat" / "evals" / "new.py").write_text("")
    here = make_tree(clone, ".", tmp_path / "code", None)
    make_tree(clone, "idea", tmp_path / "code", here)
    evals = tmp_path / "code" / "idea" / "gchat" / "evals"
    assert (evals / "bpb.py").read_text() == "honest = 'as changed'\n"
    assert (evals / "new.py").exists()


def test_uncommitted_changes_are_taken_by_a_dot_and_said_otherwise(clone, tmp_path):
    (clone / "gchat" / "model.py").write_text("a = 5\n")
    (clone / "gchat" / "new.py").write_text("new = 1\n")
    named = make_tree(clone, "main", tmp_path / "code", None)
    assert named.notes == ("uncommitted changes of main are left out; name `.` to take them",)
    assert (tmp_path / "code" / "main" / "gchat" / "model.py").read_text().startswith("a = 1")
    here = make_tree(clone, ".", tmp_path / "code", named)
    place = tmp_path / "code" / "working tree" / "gchat"
    assert (place / "model.py").read_text() == "a = 5\n"
    assert (place / "new.py").exists()
    assert here.code.changes
    assert "uncommitted changes" in here.notes[0]
    (clone / "gchat" / "new.py").write_text("new = 2\n")
    assert make_tree(clone, ".", tmp_path / "code", named).code.changes != here.code.changes


@pytest.mark.parametrize(
    ("name", "said"),
    [("mian", "no branch or commit"), ("idea+clash", r"git merge failed .CONFLICT .*model.py\)")],
)
def test_what_cannot_be_laid_out_is_one_line(clone, first, tmp_path, name, said):
    with pytest.raises(TreeError, match=said) as refused:
        make_tree(clone, name, tmp_path / "code", first)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mian", "idea+mian", "+no-such-idea"])
def test_a_name_is_checked_before_anything_is_made(clone, name):
    worktrees.check_name(clone, "idea+other+relu2")
    with pytest.raises(TreeError, match="is no branch"):
        worktrees.check_name(clone, name)


def test_a_folder_that_cannot_be_made_is_one_line(clone, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TreeError, match="cannot be made") as refused:
        make_tree(clone, "main", tmp_path / "file" / "code", None)
    assert "\n" not in str(refused.value)


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Two ideas of this clone: a patch, and one that is made of it and an option."""
    shelf = tmp_path / "examples"
    for name in ("change", "both", "stale"):
        (shelf / name).mkdir(parents=True)
        (shelf / name / "README.md").write_text(f"# {name}\n")
    patch = "--- a/gchat/model.py\n+++ b/gchat/model.py\n@@ -1,2 +1,2 @@\n-a = {old}\n+a = 7\n \n"
    (shelf / "change" / "change.patch").write_text(patch.format(old=1))
    (shelf / "stale" / "change.patch").write_text(patch.format(old=55))
    (shelf / "both" / "idea.yaml").write_text("parts: [change]\nset: {model.depth: 2}\n")
    monkeypatch.setattr(ideas, "FOLDER", shelf)
    return shelf


def test_an_idea_is_a_patch_on_the_first_tree_and_options(clone, first, shelf, tmp_path):
    tree = make_tree(clone, "+both", tmp_path / "code", first)
    text = (tmp_path / "code" / "+both" / "gchat" / "model.py").read_text()
    assert text == "a = 7\n\n\n\n\nb = 2\n"
    assert tree.options == ("--model.depth=2",)
    assert tree.notes == ("+both trains with --model.depth=2",)
    assert tree.size == (1, 1, 1)
    assert tree.code.changes and tree.code.commit == first.code.commit
    on_a_branch = make_tree(clone, "other+change", tmp_path / "code", first)
    text = (tmp_path / "code" / "other+change" / "gchat" / "model.py").read_text()
    assert text == "a = 7\n\n\n\n\nb = 4\n"
    assert on_a_branch.options == ()


def test_an_idea_goes_on_top_of_a_first_tree_with_ideas(clone, shelf, tmp_path):
    (shelf / "more").mkdir()
    (shelf / "more" / "README.md").write_text("# more\n")
    (shelf / "more" / "idea.yaml").write_text("set: {optim.lr: 1}\n")
    whole = make_tree(clone, "+both", tmp_path / "code", None)
    again = make_tree(clone, "+more", tmp_path / "code", whole)
    text = (tmp_path / "code" / "+more" / "gchat" / "model.py").read_text()
    assert text == "a = 7\n\n\n\n\nb = 2\n"
    assert again.options == ("--model.depth=2", "--optim.lr=1")


@pytest.mark.parametrize(
    ("name", "base", "said"),
    [
        (
            "+change",
            "+both",
            r"builds on \+both, which has change; write HEAD\+change to start",
        ),
        ("+both", "main+change", r"builds on main\+change, which has both; write main\+both"),
        ("+both+change", "main", "has change twice; name it once"),
        ("other+change+change", "+both", "has change twice; name it once"),
    ],
)
def test_an_idea_that_comes_twice_is_refused(clone, shelf, name, base, said):
    """Git would apply it once: the variant would be its base, and no difference the result."""
    with pytest.raises(ConfigError, match=said):
        worktrees.check_name(clone, name, base)
    assert [idea.name for idea in worktrees.check_name(clone, "HEAD+change", base)] == ["change"]


def test_an_idea_goes_on_top_of_the_working_tree(clone, shelf, tmp_path):
    (clone / "gchat" / "model.py").write_text("a = 1\n\n\n\n\nb = 9\n")
    here = make_tree(clone, ".", tmp_path / "code", None)
    make_tree(clone, "+change", tmp_path / "code", here)
    text = (tmp_path / "code" / "+change" / "gchat" / "model.py").read_text()
    assert text == "a = 7\n\n\n\n\nb = 9\n"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("+chnage", "is no branch, commit or idea; perhaps you meant .change"),
        ("+stale", "stale does not fit this code"),
        ("idea+change", "change does not fit this code"),
    ],
)
def test_ideas_that_cannot_be_applied_are_one_line(clone, first, shelf, tmp_path, name, said):
    with pytest.raises(TreeError, match=said) as refused:
        make_tree(clone, name, tmp_path / "code", first)
    assert "\n" not in str(refused.value)


def test_trees_are_made_again_and_taken_away(clone, first, tmp_path):
    for _ in range(2):
        make_tree(clone, "idea", tmp_path / "code", first)
    worktrees.remove_tree(clone, tmp_path / "code" / "idea")
    assert not (tmp_path / "code" / "idea").exists()
    assert "idea" not in git(clone, "worktree", "list")


def test_a_worktree_of_the_user_s_is_left_alone(clone, first, tmp_path):
    """Its disk may be absent; one of ours that somebody deleted is made again all the same."""
    git(clone, "worktree", "add", "-q", str(tmp_path / "disk" / "own"), "idea")
    (tmp_path / "disk").rename(tmp_path / "unplugged")
    shutil.rmtree(tmp_path / "code")
    for _ in range(2):
        make_tree(clone, "main", tmp_path / "code", None)
    listed = git(clone, "worktree", "list")
    assert "/disk/own " in listed and listed.count("/code/main ") == 1


def test_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="in no git clone"):
        worktrees.repository()
