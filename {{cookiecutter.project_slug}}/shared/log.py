"""Structured logging with one renderer for the service and all libraries."""

import logging
import os
import sys
from typing import Literal, TextIO

import structlog
from structlog.processors import ExceptionRenderer
from structlog.stdlib import BoundLogger, ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor, WrappedLogger

from shared.redaction import redact_event
from shared.tracing import current_trace_id

_HANDLER_NAME = "shared.log"
# These log every request at INFO and every packet at DEBUG, so their level is one step higher.
_VERBOSE_LOGGERS = ("httpx", "httpcore", "websockets")


class _StdoutHandler(logging.StreamHandler[TextIO]):
    """Handler that looks up `sys.stdout` for each line, because tests replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


def get_logger(
    service_name: str,
    *,
    level: str = "INFO",
    log_format: Literal["auto", "console", "json"] = "auto",
) -> BoundLogger:
    """Configure logging for the whole process and return the logger of a service.

    Lines of the standard library's `logging` are formatted in the same way. A library that adds
    its own handlers must be configured not to (uvicorn: `log_config=None`).
    """
    _configure_structlog()
    _configure_stdlib(service_name, level, log_format)
    logger: BoundLogger = structlog.stdlib.get_logger(service_name).bind(service=service_name)
    return logger


def _add_trace_id(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    if (trace_id := current_trace_id()) is not None:
        event_dict.setdefault("trace_id", trace_id)
    return event_dict


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        _add_trace_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.StackInfoRenderer(),
    ]


def _configure_structlog() -> None:
    if structlog.is_configured():
        return
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_shared_processors(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _configure_stdlib(service_name: str, level: str, log_format: str) -> None:
    on_terminal = sys.stdout.isatty()
    as_json = log_format == "json" or (log_format == "auto" and not on_terminal)
    coloured = on_terminal and not os.environ.get("NO_COLOR")

    handler = _StdoutHandler(sys.stdout)
    handler.set_name(_HANDLER_NAME)
    handler.setFormatter(_formatter(service_name, as_json=as_json, coloured=coloured))

    root = logging.getLogger()
    for old in [old for old in root.handlers if old.get_name() == _HANDLER_NAME]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _VERBOSE_LOGGERS:
        logging.getLogger(name).setLevel(root.level + logging.DEBUG)


def _formatter(service_name: str, *, as_json: bool, coloured: bool) -> ProcessorFormatter:
    def add_service(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
        event_dict.setdefault("service", service_name)
        return event_dict

    renderers: list[Processor]
    if as_json:
        # Exclude local variables, because they may hold passwords and tokens.
        exceptions = ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        renderers = [exceptions, redact_event, structlog.processors.JSONRenderer()]
    else:
        console = structlog.dev.ConsoleRenderer(
            colors=coloured, exception_formatter=structlog.dev.plain_traceback
        )
        renderers = [structlog.processors.format_exc_info, redact_event, console]
    return ProcessorFormatter(
        foreign_pre_chain=_shared_processors(),
        processors=[add_service, ProcessorFormatter.remove_processors_meta, *renderers],
    )
