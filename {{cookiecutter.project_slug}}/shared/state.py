"""What a service remembers over a restart. Neither loading nor saving ever stops it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, overload

from pydantic import BaseModel, ValidationError
from structlog.stdlib import BoundLogger

from shared.files import atomic_write


class StateFile:
    """A small JSON object on disk; load it before the first call to anything outside.

    Keep in it what is costly to get again, and nothing that can be computed from it.
    """

    def __init__(self, path: Path, logger: BoundLogger) -> None:
        self.path = path
        self._logger = logger
        self._save_failed = False

    @overload
    def load(self) -> dict[str, Any]: ...
    @overload
    def load[M: BaseModel](self, model: type[M]) -> M: ...
    def load(self, model: type[BaseModel] | None = None) -> dict[str, Any] | BaseModel:
        """The saved state with its `saved_at` (ISO 8601, UTC); empty when there is none.

        With a model whose fields all have defaults, an instance of it. A file that holds something
        else is set aside as `*.corrupt`, with a warning.
        """
        state = self._read()
        if model is None:
            return state
        if not state:
            return model()
        try:
            return model.model_validate(
                {
                    name: value
                    for name, value in state.items()
                    if name != "saved_at" or name in model.model_fields
                }
            )
        except ValidationError as error:
            fields = {".".join(map(str, problem["loc"])) for problem in error.errors()}
            self._set_aside(f"no {model.__name__}: {', '.join(sorted(fields))}")
            return model()

    def save(self, state: Mapping[str, Any] | BaseModel) -> bool:
        """Save the state with the time; False, and one warning, when that fails."""
        try:
            if isinstance(state, BaseModel):
                state = state.model_dump(mode="json", by_alias=True)
            stamped = {**state, "saved_at": datetime.now(UTC).isoformat()}
            content = json.dumps(stamped, ensure_ascii=False, allow_nan=False, indent=2)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self.path, content + "\n")
        except (OSError, TypeError, ValueError, RecursionError) as error:
            if not self._save_failed:
                self._logger.warning("state_not_saved", path=str(self.path), error=error)
            self._save_failed = True
            return False
        self._save_failed = False
        return True

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._logger.warning("state_not_read", path=str(self.path), error=error)
            return {}
        except (ValueError, RecursionError) as error:
            self._set_aside(str(error))
            return {}
        if not isinstance(state, dict):
            self._set_aside(f"a JSON object was expected, not {type(state).__name__}")
            return {}
        return state

    def _set_aside(self, reason: str) -> None:
        aside = self.path.with_name(f"{self.path.name}.corrupt")
        try:
            self.path.replace(aside)
        except OSError as error:
            self._logger.warning("state_corrupt", path=str(self.path), reason=reason, error=error)
            return
        self._logger.warning("state_corrupt", reason=reason, set_aside=str(aside))
