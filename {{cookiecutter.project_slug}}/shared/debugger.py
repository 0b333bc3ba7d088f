"""Wait for a debugger before the service starts its work (`DEBUG_SERVICE`)."""

import asyncio
import os
import sys
from traceback import walk_stack

from structlog.stdlib import BoundLogger

DEBUG_PORT = 5678


async def wait_for_debugger(stopping: asyncio.Event, logger: BoundLogger) -> None:
    """Listen on DEBUG_PORT until a debugger has attached or the service stops."""
    try:
        import debugpy  # noqa: PLC0415 - only needed for debugging
    except ModuleNotFoundError:
        logger.warning("debugger_missing", hint="debugpy is not installed")
        return
    # A debugger may run any code, so it listens locally unless `make debug` says that the port is
    # published by a container, which needs all interfaces.
    host = os.environ.get("DEBUG_HOST", "127.0.0.1")
    debugpy.listen((host, DEBUG_PORT))
    logger.info("debugger_waiting", host=host, port=DEBUG_PORT)
    attached = asyncio.create_task(asyncio.to_thread(debugpy.wait_for_client))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({attached, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not attached.done():
        debugpy.wait_for_client.cancel()
    await attached


def is_debugging(thread_id: int) -> bool:
    """Return whether a debugger is attached, or the thread is at a breakpoint of pdb."""
    debugpy = sys.modules.get("debugpy")
    if debugpy is not None and debugpy.is_client_connected():
        return True
    frames = walk_stack(sys._current_frames().get(thread_id))  # noqa: SLF001 - documented
    return any(frame.f_globals.get("__name__") == "bdb" for frame, _ in frames)
