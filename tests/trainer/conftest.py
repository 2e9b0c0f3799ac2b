"""What all tests of the trainer need."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait for the disk: no test here cuts the power, and dozens of small trainings write their files."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
