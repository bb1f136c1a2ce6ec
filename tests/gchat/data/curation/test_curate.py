"""Curation as a whole: copies, counts that add up, resumption, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.data import cli
from gchat.data.curation import contamination, engines, near, scores, shingles, stages
from gchat.data.curation.curate import curate
from gchat.data.curation.near import Duplicates
from gchat.data.curation.options import Options, Perplexity
from gchat.data.sources import text as text_source

STEMS = (
    "ship", "line", "sail", "port", "wind", "sea", "crew", "map", "gun", "deck", "sky", "rope",
    "mast", "tide", "oar", "bell", "fog", "net",
)  # fmt: skip
COMMON = ("the", "of", "and", "to")


def words(rng, count):
    """A vocabulary of 18 * 18 words is enough for 5-grams never to repeat."""
    pairs = rng.integers(0, len(STEMS), (count, 2))
    return [f"{STEMS[a]}{STEMS[b]}" if a % 3 else COMMON[b % 4] for a, b in pairs]


def document(rng, count=90):
    w = words(rng, count)
    return " ".join(" ".join(w[i : i + 15]).capitalize() + "." for i in range(0, count, 15))


def edited(rng, text, edits=2):
    w = text.split()
    for i in rng.choice(len(w), edits, replace=False):
        w[i] = "changed"
    return " ".join(w)


def write_corpus(folder, files=3, documents=40, seed=0):
    """Files of documents; each file's first is copied exactly and nearly into the next ones."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    first = document(rng)
    kinds = {"fresh": 0, "exact": 0, "near": 0, "bad": 0}
    for f in range(files):
        rows = [{"text": document(rng), "id": f"{f}-{i}", "url": "https://a.example/x"}
                for i in range(documents)]  # fmt: skip
        kinds["fresh"] += documents
        if f == 0:
            rows.append({"text": first, "id": "first"})
            kinds["fresh"] += 1
        else:
            rows += [{"text": first.upper(), "id": "x"}, {"text": edited(rng, first), "id": "n"}]
            kinds["exact"] += 1
            kinds["near"] += 1
        rows += [{"text": "Too short.", "id": "s"}]
        kinds["bad"] += 1
        lines = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{f}.jsonl").write_text(lines)
    return kinds


def run(tmp_path, out="out", **options):
    given = {"input": str(tmp_path / "in"), "workers": 1} | options
    return curate(Options(out=tmp_path / out, **given), progress=False)


def written(folder):
    found = []
    for part in sorted(folder.glob("part-*.jsonl.zst")):
        with pa.input_stream(str(part), compression="zstd") as stream:
            found += [json.loads(line) for line in stream.read().splitlines()]
    return found


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def removed(report):
    return {rule["rule"]: rule["documents"] for rule in report["removed"]}


def test_copies_go_the_first_stays_and_the_counts_add_up(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "UNIT_BYTES", 1)  # one unit per file
    kinds = write_corpus(tmp_path / "in")
    report = run(tmp_path)
    assert removed(report) == {
        "c4.empty": kinds["bad"],
        "duplicate.exact": kinds["exact"],
        "duplicate.near": kinds["near"],
    }
    stored = written(tmp_path / "out")
    assert len(stored) == kinds["fresh"] == report["written"]["documents"]
    assert "first" in {row["id"] for row in stored} and "n" not in {row["id"] for row in stored}
    assert stored[0]["url"] == "https://a.example/x"
    assert report["read"]["documents"] == sum(kinds.values())
    sample = next(r for r in report["removed"] if r["rule"] == "duplicate.near")["samples"][0]
    assert "changed" in sample["text"]
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "| duplicate.near | 2 |" in markdown and "### c4.empty" in markdown
    assert (tmp_path / "out" / "report.png").read_bytes()[:4] == b"\x89PNG"
    assert not (tmp_path / "out" / ".curate").exists()


def test_workers_and_interruptions_do_not_change_a_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(text_source, "UNIT_BYTES", 1)
    write_corpus(tmp_path / "in", documents=12)
    report = run(tmp_path, "one")
    assert run(tmp_path, "two", workers=2) == report
    assert content(tmp_path / "two") == content(tmp_path / "one")
    for stage in (stages.Filter, stages.Compare, stages.Finish):
        real, calls = stage.__call__, []

        def stopped(self, task, real=real, calls=calls):
            calls.append(task)
            if len(calls) == (1 if isinstance(self, stages.Compare) else 2):
                raise KeyboardInterrupt
            return real(self, task)

        out = f"cut-{stage.__name__}"
        with monkeypatch.context() as patch:
            patch.setattr(stage, "__call__", stopped)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path, out)
        assert not (tmp_path / out / "report.json").exists()
        run(tmp_path, out)
        assert content(tmp_path / out) == content(tmp_path / "one")


def test_chunks_do_not_change_the_result(tmp_path, monkeypatch):
    write_corpus(tmp_path / "in", documents=12)
    run(tmp_path, "one")
    monkeypatch.setattr("gchat.data.curation.chunks._CHUNK_DOCUMENTS", 5)
    monkeypatch.setattr(stages, "_BATCH_DOCUMENTS", 4)
    run(tmp_path, "two")
    assert written(tmp_path / "two") == written(tmp_path / "one")


def test_a_finished_curation_is_taken_or_refused(tmp_path):
    write_corpus(tmp_path / "in", documents=8)
    report = run(tmp_path)
    before = content(tmp_path / "out")
    assert run(tmp_path) == report
    with pytest.raises(DataError, match="with other options: pii; choose another --out"):
        run(tmp_path, pii=True)
    assert content(tmp_path / "out") == before
    assert run(tmp_path, pii=True, overwrite=True)["parameters"]["pii"]


def test_every_kind_of_near_copy_is_found():
    rng = np.random.default_rng(1)
    originals = [document(rng, 150) for _ in range(300)]
    texts = list(originals)
    texts += [edited(rng, t, 4) for t in originals[:100]]
    texts += [document(rng, 8) + t for t in originals[100:200]]
    h = shingles.hashed(texts)
    options = Duplicates()
    signatures = near.signatures(h, options)
    bands = iter(near.band_hashes(signatures, options))
    copies = near.near_copies(bands, signatures.__getitem__, np.ones(500, bool), 0.6)
    assert copies[300:].mean() >= 0.99
    assert not copies[:300].any()


def test_signatures_estimate_similarity():
    rng = np.random.default_rng(2)
    base = words(rng, 400)
    other = base[:200] + words(rng, 200)
    h = shingles.hashed([" ".join(base), " ".join(other), "two words", "two words", "", "three"])
    signatures = near.signatures(h, Duplicates(bands=128, rows=8))
    grams = [set(zip(*(w[i:] for i in range(5)), strict=False)) for w in (base, other)]
    jaccard = len(grams[0] & grams[1]) / len(grams[0] | grams[1])
    assert (signatures[0] == signatures[1]).mean() == pytest.approx(jaccard, abs=0.06)
    assert (signatures[2] == signatures[3]).all() and (signatures[2] != signatures[5]).any()
    again = near.signatures(shingles.hashed(["two words"]), Duplicates(bands=128, rows=8))
    assert (again[0] == signatures[2]).all()


def test_clusters_keep_their_first_whatever_the_order():
    clusters = near._Clusters(7)
    for a, b in ((5, 6), (3, 5), (6, 1)):
        clusters.join(a, b)
    assert clusters.roots().tolist() == [0, 1, 2, 1, 4, 1, 1]


def test_evaluation_questions_are_found(tmp_path):
    question = (
        "Natalia sold clips to forty eight of her friends in April and then she sold half as many"
    )
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "a.jsonl").write_text(
        json.dumps({"question": question, "answer": "72", "more": ["x", {"y": "Nine words that"}]})
    )
    (tmp_path / "eval" / "b.csv").write_text('"which of these eight words are in here, please",B\n')
    evals = contamination.load([str(tmp_path / "eval")])
    assert (evals.items, evals.skipped) == (2, 5 - 1)
    texts = [
        f"He wrote: {question.upper()}! And so on.",
        " ".join(question.split()[:12]) + " and something else entirely in this one",
        "In a test: which of these eight words are in here please?",
        "which of these eight words are somewhere else",
    ]
    assert (evals.hits(shingles.hashed(texts)) > 0).tolist() == [True, False, True, False]
    with pytest.raises(DataError, match="holds no evaluation set"):
        contamination.load([str(tmp_path / "in")])
    (tmp_path / "eval" / "c.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"c\.jsonl cannot be read"):
        contamination.load([str(tmp_path / "eval")])


def test_contaminated_documents_are_reported(tmp_path):
    write_corpus(tmp_path / "in", documents=8)
    stored = json.loads((tmp_path / "in" / "0.jsonl").read_text().split("\n")[3])
    (tmp_path / "eval.txt").write_text(" ".join(stored["text"].split()[10:30]))
    report = run(tmp_path, decontaminate=(str(tmp_path / "eval.txt"),))
    assert removed(report)["contamination.eval_ngram"] == 1
    assert report["eval_items"] == {"used": 1, "short": 0}


def test_upsampling_repeats_by_file_and_by_hash(tmp_path):
    write_corpus(tmp_path / "in", documents=40)
    plain = run(tmp_path, "plain")
    report = run(tmp_path, upsample=("1.jsonl=3", "2.jsonl=0.5"))
    counts = {}
    for row in written(tmp_path / "out"):
        counts[row["id"]] = counts.get(row["id"], 0) + 1
    assert {n for i, n in counts.items() if i.startswith("1-")} == {3}
    assert {n for i, n in counts.items() if i.startswith("0-")} == {1}
    halved = sum(i.startswith("2-") for i in counts)
    assert 8 <= halved <= 32 and report["written"]["skipped"] == 40 - halved
    assert report["upsampled"] == {"1.jsonl": 40, "2.jsonl": 40}
    assert "1.jsonl: 40 documents written 3 times" in (tmp_path / "out/report.md").read_text()
    assert report["written"]["documents"] == sum(counts.values())
    assert plain["upsampled"] == {}


@dataclasses.dataclass(frozen=True)
class ByLength:
    """A scorer whose result is known."""

    def __call__(self):
        return lambda texts: np.array([len(t) / 1000 for t in texts])


def test_the_perplexity_filter_takes_the_worst(tmp_path):
    rng = np.random.default_rng(5)
    (tmp_path / "in").mkdir()
    texts = [document(rng, 75 + 15 * (i // 4)) for i in range(40)]
    lines = "\n".join(json.dumps({"text": t}) for t in texts)
    (tmp_path / "in" / "a.jsonl").write_text(lines)
    options = Options(
        out=tmp_path / "out",
        input=str(tmp_path / "in"),
        perplexity=Perplexity(scorer="run:given", drop_worst=0.2, min_bpb=0.5),
        workers=1,
    )
    report = curate(options, ByLength(), progress=False)
    lengths = sorted(map(len, texts))
    found = removed(report)
    assert found["perplexity.max_bpb"] == 8
    assert found.get("perplexity.min_bpb", 0) == sum(n < 500 for n in lengths)
    kept = {len(row["text"]) for row in written(tmp_path / "out")}
    assert max(kept) <= lengths[-9] and min(kept) >= 500


def test_a_bigram_finds_shuffled_text_worse(tmp_path):
    rng = np.random.default_rng(3)
    sentence = "the ship sailed to the port and the crew went to the town with the wind. "
    (tmp_path / "good.txt").write_text(sentence * 200)
    scorer = scores.Ngram(str(tmp_path / "good.txt"))()
    good = sentence * 3
    bad = " ".join(rng.permutation(good.split()))
    noise = "".join(chr(c) for c in rng.integers(33, 126, len(good)))
    bits = scorer([good, bad, noise, ""])
    assert bits[0] < bits[1] < bits[2] and bits[3] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "gs://bucket/x"}, "not a local folder"),
        ({"out": Path("gs://bucket/x")}, "not a local folder"),
        ({"upsample": ("a",)}, "upsample = 'a' is not PATTERN=TIMES"),
        ({"duplicates": Duplicates(threshold=0)}, "threshold = 0"),
        ({"perplexity": Perplexity(drop_worst=0.1)}, "a scorer needs a bound"),
        ({"perplexity": Perplexity(scorer="magic:1", max_bpb=1)}, "scorer = 'magic:1' is unknown"),
        ({"perplexity": Perplexity(scorer="ngram:no", max_bpb=1)}, "no such file"),
        ({"perplexity": Perplexity(scorer="run:x", max_bpb=1)}, "use gchat data curate"),
        ({"decontaminate": ("no",)}, "holds no evaluation set"),
        ({"text_column": "body"}, "has no field 'body'; it has: id, text"),
        ({"input": "no"}, "is not there"),
        ({"workers": -1}, "workers = -1"),
    ],
)
def test_what_cannot_work_leaves_nothing_behind(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "in", files=1, documents=3)
    with pytest.raises(GaiaError, match=message):
        curate(
            Options(**({"out": tmp_path / "out", "input": str(tmp_path / "in")} | options)),
            progress=False,
        )
    assert not (tmp_path / "out").exists()


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Too short.")
    with pytest.raises(DataError, match=r"left none of 1 documents \(most: c4\.empty\)"):
        run(tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_command_prints_what_each_rule_took(tmp_path, capsys):
    write_corpus(tmp_path / "in", documents=5)
    args = ["--input", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--workers", "1"]
    cli.parse_verb("curate", [*args, "--gopher.min-words", "5"]).run()
    printed = capsys.readouterr().out
    assert "duplicate.exact" in printed and "documents stay" in printed
    with pytest.raises(ConfigError, match=r"perhaps you meant --gopher\.min-word"):
        cli.parse_verb("curate", [*args, "--gopher.min-wordz", "5"])


def test_a_missing_engine_is_one_line(tmp_path):
    if engines_installed():
        pytest.skip("datatrove is installed here")
    write_corpus(tmp_path / "in", documents=3)
    with pytest.raises(ConfigError, match=r"needs datatrove; pip install 'gaia\[curate-ray\]'"):
        run(tmp_path, engine="datatrove-local")


def engines_installed():
    try:
        import datatrove  # noqa: F401
    except ImportError:
        return False
    return True


def test_lost_tasks_are_run_again_and_named_in_the_end(tmp_path, monkeypatch):
    """An engine that loses tasks: the missing ones come again; with no luck the stage stops."""
    calls = []

    def forgetful(engine, folder, name, job, tasks, workers):
        calls.append(len(tasks))
        for task in tasks[: len(tasks) // 2]:
            job(task)

    monkeypatch.setattr(engines, "_executor", forgetful)
    (tmp_path / stages.SCRATCH).mkdir()

    def job(task):
        stages.marker(tmp_path, "x", task).write_text("{}")

    with pytest.raises(engines.EngineError, match=r"x: 1 tasks of datatrove-ray .*\(numbers 7\)"):
        engines.run_stage("datatrove-ray", tmp_path, "x", job, range(8), 2, print)
    assert calls == [8, 4, 2]
    engines.run_stage("datatrove-ray", tmp_path, "x", job, range(7), 2, print)
    assert calls == [8, 4, 2]


CURATE = """
import sys
from pathlib import Path
from gchat.data.curation.curate import curate
from gchat.data.curation.options import Options
from gchat.data.sources import text
text.UNIT_BYTES = 1
if __name__ == "__main__":
    source, out, engine, workers = sys.argv[1:]
    curate(Options(out=Path(out), input=source, engine=engine, workers=int(workers)))
"""


def started(tmp_path, out, engine, workers, environment):
    script = tmp_path / "curate_it.py"
    script.write_text(CURATE)
    command = [sys.executable, str(script), str(tmp_path / "in"), str(out), engine, str(workers)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


@pytest.mark.slow
def test_kill_9_during_curation_changes_nothing(tmp_path, user_environment):
    write_corpus(tmp_path / "in", files=10, documents=200)
    assert started(tmp_path, tmp_path / "whole", "local", 2, user_environment).wait() == 0
    kills = 0
    for markers in (2, 6, 11, 15):
        process = started(tmp_path, tmp_path / "cut", "local", 2, user_environment)
        while process.poll() is None:
            if len(list((tmp_path / "cut").glob(".curate/*-*.json"))) >= markers:
                process.kill()
                kills += 1
                break
            time.sleep(0.01)
        process.wait()
    assert kills >= 2
    assert started(tmp_path, tmp_path / "cut", "local", 2, user_environment).wait() == 0
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.slow
def test_the_datatrove_engine_gives_the_same(tmp_path, user_environment):
    pytest.importorskip("datatrove", reason="needs the extra curate-ray")
    write_corpus(tmp_path / "in", files=6, documents=50)
    for out, engine in (("local", "local"), ("trove", "datatrove-local")):
        assert started(tmp_path, tmp_path / out, engine, 2, user_environment).wait() == 0
    assert without_engine(tmp_path / "trove") == without_engine(tmp_path / "local")


def without_engine(folder):
    return {name: data for name, data in content(folder).items() if name != "report.json"}


@pytest.mark.slow
def test_a_ray_worker_killed_in_the_middle_loses_and_repeats_nothing(tmp_path, user_environment):
    """A Ray cluster of two workers; one of them gets kill -9 while it filters a unit."""
    ray = pytest.importorskip("ray", reason="needs the extra curate-ray")
    pytest.importorskip("datatrove", reason="needs the extra curate-ray")
    psutil = pytest.importorskip("psutil")
    write_corpus(tmp_path / "in", files=12, documents=1500)
    assert started(tmp_path, tmp_path / "whole", "local", 2, user_environment).wait() == 0
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    environment = user_environment | {"RAY_ADDRESS": "127.0.0.1:6399", "RAY_DEDUP_LOGS": "0"}
    start = [*ray_command, "start", "--head", "--port=6399", "--num-cpus=2"]
    start += ["--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"]
    subprocess.run(start, check=True, env=user_environment, capture_output=True)
    try:
        process = started(tmp_path, tmp_path / "cut", "datatrove-ray", 2, environment)
        killed = None
        while process.poll() is None and killed is None:
            time.sleep(0.05)
            if len(list((tmp_path / "cut").glob(".curate/filter-*.json"))) < 3:
                continue
            actors = {
                p.pid: p
                for p in psutil.process_iter(["cmdline"])
                if "RankWorker.run_for_rank" in " ".join(p.info["cmdline"] or [])
            }
            # datatrove works in a child of the actor, which bears its name.
            for actor in (p for p in actors.values() if p.ppid() not in actors):
                actor.kill()
                killed = actor.pid
                break
        assert killed is not None, "the work was over before a worker could be killed"
        assert process.wait() == 0
    finally:
        subprocess.run([*ray_command, "stop", "--force"], env=user_environment, capture_output=True)
        shutil.rmtree("/tmp/ray", ignore_errors=True)
    assert ray.__version__
    assert without_engine(tmp_path / "cut") == without_engine(tmp_path / "whole")
    ids = [row["id"] for row in written(tmp_path / "cut") if "-" in row["id"]]
    assert len(ids) == len(set(ids)) == 12 * 1500
