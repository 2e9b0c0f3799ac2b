"""The machine is made ready for a run; what that saves is measured in benchmarks/page_faults.py."""

from __future__ import annotations

import ctypes

import pytest

from scripts.core.system.machine import keep_freed_memory


@pytest.mark.parametrize("error", [OSError, AttributeError, TypeError])
def test_a_c_library_that_cannot_keep_freed_memory_is_left_as_it_is(monkeypatch, error):
    def load(name: None) -> None:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert keep_freed_memory() is False
