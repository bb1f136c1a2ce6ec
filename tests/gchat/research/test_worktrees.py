"""Source trees of branches: merges, judges, changes that are taken or left out."""

import subprocess

import pytest

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
    for name, place, rest in (("adds", "adds", ", gchat/run/names.py"), (".", "working-tree", "")):
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
    git(clone, "checkout", "-q", "-b", "loss", "main")
    (clone / "gchat" / "train_step.py").write_text("loss = 0\n")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "loss")
    tree = make_tree(clone, "loss", tmp_path / "code", first)
    assert "the figures of loss rest on gchat/train_step.py" in tree.notes[0]


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
    (clone / "gchat" / "model.py").write_text("a = 5\n")
    make_tree(clone, ".", tmp_path / "code", None)
    assert (tmp_path / "code" / "working-tree" / "gchat" / "model.py").read_text() == "a = 5\n"


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
    place = tmp_path / "code" / "working-tree" / "gchat"
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


def test_outside_of_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="in no git clone"):
        worktrees.repository()
