"""Files of `~/.gml` that several threads or commands write at once."""

from __future__ import annotations

import os
import threading

from gml.store import write_private


def test_threads_that_write_one_file_do_not_take_each_others_halves(tmp_path, monkeypatch):
    """`gml run -n 3` writes ssh_config once for each of its machines."""
    path, replace, written, failed = tmp_path / "ssh_config", os.replace, threading.Barrier(3), []

    def both_written(*names):
        written.wait(60)
        replace(*names)

    def write(number: int) -> None:
        try:
            write_private(path, f"{number}" * 10_000)
        except OSError as error:
            failed.append(error)

    monkeypatch.setattr(os, "replace", both_written)
    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    text = path.read_text()
    assert len(text) == 10_000 and len(set(text)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["ssh_config"]
    assert path.stat().st_mode & 0o777 == 0o600
