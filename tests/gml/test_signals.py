"""Signals during the life of a node: who ignores one already goes on ignoring it."""

import os
import signal

import pytest

from gml.nodes.signals import terminate_is_interrupt


@pytest.fixture
def hangup():
    """Sets what happens at SIGHUP; the old handler returns afterwards."""
    before = signal.getsignal(signal.SIGHUP)
    yield lambda handler: signal.signal(signal.SIGHUP, handler)
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_unwinds(hangup):
    hangup(signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), terminate_is_interrupt():
        os.kill(os.getpid(), signal.SIGHUP)


def test_nohup_outlives_the_terminal(hangup):
    """`nohup gml node create …`: the terminal closes, the node comes up."""
    hangup(signal.SIG_IGN)
    with terminate_is_interrupt():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
