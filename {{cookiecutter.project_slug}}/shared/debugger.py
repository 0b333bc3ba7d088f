"""Wait for a debugger before the service starts its work (`DEBUG_SERVICE`)."""

import asyncio
from pathlib import Path

from structlog.stdlib import BoundLogger

DEBUG_PORT = 5678
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


async def wait_for_debugger(stopping: asyncio.Event, logger: BoundLogger) -> None:
    """Listen on DEBUG_PORT until a debugger has attached or the service stops."""
    try:
        import debugpy  # noqa: PLC0415 - only needed for debugging
    except ModuleNotFoundError:
        logger.warning("debugger_missing", hint="debugpy is not installed")
        return
    # A published port needs all interfaces in a container. On a host, listen locally only, because
    # a debugger may run any code.
    in_container = any(mark.exists() for mark in _CONTAINER_MARKS)
    host = "0.0.0.0" if in_container else "127.0.0.1"  # noqa: S104
    debugpy.listen((host, DEBUG_PORT))
    logger.info("debugger_waiting", host=host, port=DEBUG_PORT)
    attached = asyncio.create_task(asyncio.to_thread(debugpy.wait_for_client))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({attached, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not attached.done():
        debugpy.wait_for_client.cancel()
    await attached
