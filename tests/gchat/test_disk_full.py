"""A disk that fills up while a run saves: it says so, trains on, and can be taken up again."""

import json

import runs
from disks import fill, small_disk
from gaia.checkpoint import Checkpointer
from gchat.__main__ import main


def test_disk_full_while_saving(data_dir, tmp_path, capsys, monkeypatch):
    """Checkpoints lie on a disk that is filled after the first of them."""
    with small_disk(tmp_path / "disk", "6m") as disk:
        folder, saved = tmp_path / "run", disk / "checkpoints"
        args = runs.arguments(data_dir, folder, "--checkpoint.dir", saved, steps=60)
        save, filler = Checkpointer.save, []

        def fill_before_the_second(self, step, state, meta):
            if step == 40 and not filler:
                assert self.wait() is None
                filler.append(fill(disk, leave=30_000))
            return save(self, step, state, meta)

        monkeypatch.setattr(Checkpointer, "save", fill_before_the_second)
        assert main(["train", *args]) == 1
        said = capsys.readouterr()
        assert "no checkpoint of step 40" in said.out and "space" in said.out.lower()
        assert "the checkpoint of the last step, 60, could not be written" in said.err
        all_lines = said.err.splitlines()
        lines = [line for line in all_lines if not line.startswith("gaia-metrics: warn")]
        assert len(lines) == 1 and "--resume" in lines[0]
        # All steps were trained and logged; the first checkpoint is intact; nothing half-written.
        assert list(runs.losses(folder)) == list(range(1, 61))
        assert [p.name for p in saved.iterdir()] == ["20"]
        before = runs.losses(folder)

        filler[0].unlink()
        assert main(["train", *args, "--resume"]) == 0
        assert "resumed from step 20 of 60" in capsys.readouterr().out
        assert runs.losses(folder) == before  # and it takes the same way again
        assert json.loads((folder / "summary.json").read_text())["finished"] is True
