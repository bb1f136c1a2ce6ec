"""A disk that changes bits: what it changed is lost at most, and said; nothing behind it is."""

import json

import pytest

import gaia_metrics
from gaia_metrics import doctor
from gaia_metrics.reading.local import LocalSource
from gaia_metrics.sending.spool import Spool
from gaia_metrics.storage import frames, jsonl, segment_writer, segments

STEPS = 300


def record(folder, process=0, steps=range(STEPS), **options):
    run = gaia_metrics.init(
        "p", "n", dir=folder, system_interval=0, process_index=process, **options
    )
    for step in steps:
        run.log(step, {"train/loss": float(step), "x": 2.0})
    run.finish()


def places(path):
    """(first byte of the payload, offset) of each frame."""
    data, at, found = path.read_bytes(), 0, []
    while at < len(data):
        length, _ = frames.FRAME.unpack_from(data, at)
        found.append((data[at + 8 : at + 9], at))
        at += 8 + length
    return found


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def steps(folder, process=0):
    records = segments.read_all(folder / "metrics", process)
    return [r.step for r in records if r.kind == "values"]


def lines(folder):
    return [jsonl.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


@pytest.mark.parametrize("place", [1, 8, 12])  # in the length, the payload's kind, its content
def test_one_flipped_bit_loses_one_record_and_no_line(tmp_path, capfd, place):
    folder = tmp_path / "run"
    record(folder)
    before = lines(folder)
    (segment,) = segments.paths(folder / "metrics")
    whole, (_, at) = segment.read_bytes(), places(segment)[30]
    flip(segment, at + place)
    damaged = segment.read_bytes()
    expected = [step for step in steps(folder)]
    assert len(expected) == STEPS - 1  # readers jump over it too
    assert len(LocalSource(folder).series(["n"], ["x"])["value"]) == STEPS - 1
    (finding,) = doctor._look_segments(folder)[:1]
    assert finding.level == "problem" and "are damaged" in finding.fact
    record(folder, steps=range(STEPS, STEPS + 5), resume_step=STEPS - 1)
    err = capfd.readouterr().err
    assert err.count("has damaged segments (p0-000001.seg)") == 1
    assert steps(folder) == [*expected, *range(STEPS, STEPS + 5)]
    got = lines(folder)
    assert got[:STEPS] == before and [line["step"] for line in got] == list(range(STEPS + 5))
    (copy,) = segment_writer.damaged_copies(folder / "metrics")
    assert copy.read_bytes() == damaged
    record(folder, steps=range(STEPS + 5, STEPS + 6), resume_step=STEPS + 4)  # once more
    assert capfd.readouterr().err == "" and len(lines(folder)) == STEPS + 6
    copy.unlink()
    segment.write_bytes(whole)  # of a mirror
    assert not doctor._look_segments(folder)


def test_a_torn_end_is_cut_and_a_damaged_one_is_kept(tmp_path, capfd):
    record(tmp_path / "run")
    (segment,) = segments.paths(tmp_path / "run/metrics")
    whole, (_, last) = segment.read_bytes(), places(segment)[-1]
    segment.write_bytes(whole[: last + 20])
    assert [f.level for f in doctor._look_segments(tmp_path / "run")][:1] == ["note"]
    assert segment_writer.repair(segment.parent, 0, None) == []
    assert segment.read_bytes() == whole[:last]
    segment.write_bytes(whole)
    flip(segment, len(whole) - 1)
    assert [f.level for f in doctor._look_segments(tmp_path / "run")][:1] == ["problem"]
    assert segment_writer.repair(segment.parent, 0, None) == [segment.name]
    assert segment.read_bytes() == whole[:last]
    assert len(segment_writer.damaged_copies(segment.parent)) == 1


def test_values_without_their_names_are_counted_and_their_lines_kept(tmp_path, capfd):
    folder = tmp_path / "run"
    record(folder)
    before = lines(folder)
    (segment,) = segments.paths(folder / "metrics")
    flip(segment, next(at for kind, at in places(segment) if kind == b"K") + 20)
    assert f"the names of {STEPS} records" in doctor._look_segments(folder)[0].fact
    assert LocalSource(folder).metric_names("n") == []
    record(folder, steps=range(STEPS, STEPS + 5), resume_step=STEPS - 1)
    assert lines(folder)[:STEPS] == before and len(lines(folder)) == STEPS + 5


def test_lines_whose_segments_are_gone_stay_and_cut_ones_go(tmp_path):
    folder = tmp_path / "run"
    record(folder)
    for path in segments.paths(folder / "metrics"):
        path.unlink()
    record(folder, steps=range(100, 110), resume_step=99)
    record(folder, steps=range(110, 120), resume_step=109)
    assert [line["step"] for line in lines(folder)] == list(range(120))


def test_a_changed_step_in_metrics_jsonl_is_no_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for odd in (9, 105, 9005):
        wanted = [*range(100), odd, *range(101, 200)]
        path.write_text("".join(f'{{"step": {s}, "time": 1.0, "x": 1.0}}\n' for s in wanted))
        jsonl.derive([], path)
        got = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert got == [s for s in range(200) if s != 100]


def test_a_flipped_bit_in_the_spool_loses_one_request_and_acknowledges_none(tmp_path):
    spool = Spool(tmp_path, 0, 1 << 30)
    for request in (b"one", b"two", b"three"):
        spool.append(b"m", request)
    (path,) = tmp_path.glob("*.otlp")
    flip(path, 8 + 4 + 8 + 1)
    got = []
    while (frame := spool.peek()) is not None:
        got.append(frame[1])
        spool.acknowledge()
    assert got == [b"one", b"three"] and spool.damaged == 1 and spool.pending_bytes == 0
    spool.close()
