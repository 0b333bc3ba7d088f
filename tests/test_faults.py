"""The quick rows of bench/faults, on a real Docker engine: nothing acknowledged is lost."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.faults.run import QUICK, ROWS, Stack, measure, stack_of_faults

pytestmark = [pytest.mark.docker, pytest.mark.xdist_group("docker")]

QUICK_ROWS = ["consumer", "producer", "broker", "frozen", "network", "disk", "restart"]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with stack_of_faults(QUICK) as stack:
        yield stack


@pytest.mark.parametrize("name", QUICK_ROWS)
def test_nothing_acknowledged_is_lost(stack: Stack, name: str) -> None:
    counts = measure(stack, ROWS[name])
    assert counts.acknowledged
    assert counts.lost == 0, counts
