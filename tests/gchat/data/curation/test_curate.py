"""Curation as a whole: copies, counts that add up, resumption, and what is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gaia.errors import ConfigError, DataError, GaiaError
from gchat.data import cli
from gchat.data.curation import contamination, near, scores, shingles, stages
from gchat.data.curation.curate import curate
from gchat.data.curation.near import Duplicates
from gchat.data.curation.options import Options, Perplexity
from gchat.data.sources import text as text_source
from small_curation import content, document, edited, removed, run, words, write_corpus, written


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
    with pytest.raises(DataError, match="other parameters: pii False -> True; choose another"):
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
    assert run(tmp_path, decontaminate=(str(tmp_path / "eval.txt"),)) == report
    (tmp_path / "eval.txt").write_text("other questions of an evaluation set that has changed")
    with pytest.raises(DataError, match="other parameters: contents"):
        run(tmp_path, decontaminate=(str(tmp_path / "eval.txt"),))


@pytest.mark.parametrize("left", [None, b"cut"])
def test_a_finished_curation_that_lost_a_part_is_not_taken(tmp_path, left):
    write_corpus(tmp_path / "in", documents=8)
    report = run(tmp_path)
    part = tmp_path / "out" / next(iter(report["parts"]))
    part.unlink() if left is None else part.write_bytes(left)
    with pytest.raises(DataError, match=f"{part.name} is {'gone' if left is None else 'cut'}"):
        run(tmp_path)


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


def test_a_chain_of_small_edits_is_not_one_document():
    """Neighbours are 0.9 alike, the ends not at all: what goes resembles one that stays."""
    rng = np.random.default_rng(0)
    tokens = [f"word{n}" for n in rng.integers(0, 10**6, 2400)]
    texts = [" ".join(tokens[40 * i : 40 * i + 800]) for i in range(41)]
    options = Duplicates()
    h = shingles.hashed(texts)
    signatures = near.signatures(h, options)
    bands = iter(near.band_hashes(signatures, options))
    copies = near.near_copies(bands, signatures.__getitem__, np.ones(41, bool), 0.6)
    kept = np.flatnonzero(~copies)
    similar = (signatures[:, None] == signatures[None]).mean(2) >= 0.6
    assert not copies[0] and 5 <= len(kept) <= 14
    for i in np.flatnonzero(copies):
        assert similar[i, kept[kept < i]].any()
