"""SIGHUP, SIGINT and SIGTERM: at once, deferred, and twice."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from scripts.core.errors import Interrupted
from scripts.core.system.signals import STOP_SIGNALS, stop_request
from tests.core.conftest import line_of

pytestmark = pytest.mark.usefixtures("hangup_not_ignored")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_stops_the_run_at_once_and_says_how_to_go_on(number, code):
    def run() -> None:
        with stop_request() as stop:
            stop.advice = "Go on with: this."
            os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as caught:
        run()
    assert caught.value.exit_code == code
    assert str(caught.value) == f"Stopped by {signal.Signals(number).name}. Go on with: this."


def test_a_deferred_signal_waits_until_the_code_is_ready():
    summary = []

    def run() -> None:
        with stop_request() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            summary.append(f"the step goes on, knowing of signal {stop.signal_number}")
            stop.raise_if_received("All is saved.")
            summary.append("never")

    with pytest.raises(Interrupted) as caught:
        run()
    assert summary == ["the step goes on, knowing of signal 15"]
    assert str(caught.value) == "Stopped by SIGTERM. All is saved."


def test_a_deferred_signal_stops_the_run_at_the_end_of_the_block_at_the_latest():
    summary = []

    def run() -> None:
        with stop_request() as stop:
            with stop.deferred():
                os.kill(os.getpid(), signal.SIGINT)
                summary.append("the block ends")
            summary.append("never")

    with pytest.raises(Interrupted):
        run()
    assert summary == ["the block ends"]


class Dying:
    """Something whose destructor runs while a signal arrives, or fails by itself."""

    def __init__(self, last_act):
        self.last_act = last_act

    def __del__(self):
        self.last_act()


def test_a_signal_within_a_destructor_shows_no_traceback_and_stops_the_run_later(capsys, monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)  # rather than pytest's own

    def run() -> None:
        with stop_request() as stop:
            Dying(lambda: os.kill(os.getpid(), signal.SIGTERM))
            stop.raise_if_received("Later.")

    with pytest.raises(Interrupted, match="Later"):
        run()
    assert capsys.readouterr().err == ""
    with stop_request():
        Dying(lambda: 1 / 0)
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert sys.unraisablehook is sys.__unraisablehook__


def test_without_a_signal_nothing_is_raised():
    with stop_request() as stop:
        with stop.deferred():
            stop.raise_if_received()
        stop.raise_if_received()
    assert stop.signal_number is None


def test_afterwards_signals_mean_what_they_meant_before():
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    with stop_request() as stop:
        assert [signal.getsignal(number) for number in STOP_SIGNALS] == [stop.handle] * 3
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.parametrize(("second", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_ends_the_process_at_once(processes, second, code):
    program = """
import time
from scripts.core.system.signals import stop_request
with stop_request() as stop, stop.deferred():
    print("deferring", flush=True)
    while stop.signal_number is None:
        time.sleep(0.01)
    print("stopping", flush=True)
    time.sleep(60)
"""
    process = processes.python("-c", program)
    assert line_of(process) == "deferring"
    process.send_signal(signal.SIGTERM)
    assert line_of(process) == "stopping"
    process.send_signal(second)
    assert process.wait(60) == code


def test_the_advice_is_the_one_that_is_true_when_the_signal_comes():
    saved = list[str]()

    def run() -> None:
        with stop_request() as stop:
            stop.advice = lambda: "Resume it." if saved else "Start again."
            saved.append("a checkpoint")
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"^Stopped by SIGTERM\. Resume it\.$"):
        run()


def test_a_hangup_stays_ignored_under_nohup_and_an_interrupt_does_not():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == stop.handle
    assert stop.signal_number is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
