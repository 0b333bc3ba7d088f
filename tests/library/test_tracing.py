import asyncio

import pytest

from shared.tracing import bind_trace_id, current_trace_id, new_trace_id


def test_ids_differ() -> None:
    assert new_trace_id() != new_trace_id()


def test_a_bound_id_is_gone_after_its_block_also_when_it_fails() -> None:
    assert current_trace_id() is None
    with bind_trace_id("outer"):
        with pytest.raises(LookupError), bind_trace_id("inner"):
            raise LookupError(current_trace_id())
        assert current_trace_id() == "outer"
    assert current_trace_id() is None


async def test_a_task_takes_the_id_along_and_keeps_it_to_itself() -> None:
    async def work(own: str) -> str | None:
        inherited = current_trace_id()
        with bind_trace_id(own):
            await asyncio.sleep(0)
            assert current_trace_id() == own
        return inherited

    with bind_trace_id("parent"):
        assert set(await asyncio.gather(work("a"), work("b"))) == {"parent"}
        assert current_trace_id() == "parent"
