"""Handlers of signals that hold for a while."""

import os
import signal
import threading

import pytest

from gaia.interrupt import hearing


def test_handlers_hold_inside_and_those_before_come_back():
    heard: list[object] = []
    before = signal.signal(signal.SIGHUP, lambda *_: heard.append("former"))
    try:
        with pytest.raises(LookupError), hearing(lambda n, _: heard.append(n), signal.SIGHUP):
            os.kill(os.getpid(), signal.SIGHUP)
            raise LookupError
        os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGHUP, "former"]


def test_what_nohup_ignores_stays_ignored():
    heard, before = [], signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with hearing(lambda n, _: heard.append(n), signal.SIGHUP, signal.SIGTERM):
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert heard == [signal.SIGTERM]


def test_another_thread_than_the_main_one_has_no_handlers():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with hearing(lambda *_: None, signal.SIGTERM):
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
