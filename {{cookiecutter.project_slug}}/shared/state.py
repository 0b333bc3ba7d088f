"""State that survives a restart. Loading and saving log errors and never raise them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

from pydantic import BaseModel, ValidationError
from structlog.stdlib import BoundLogger

from shared.files import atomic_write
from shared.timestamps import format_utc


class StateFile:
    """Small JSON object on disk. Load it before the first call to another system.

    Store what is expensive to fetch again, and nothing that can be computed from it.
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
        """Return the saved state with `saved_at` (ISO 8601, UTC), or an empty dictionary.

        With `model`, return an instance, or its defaults. All fields need a default. An invalid
        file is renamed to `*.corrupt`, with a warning.
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
            self._set_aside(f"not a valid {model.__name__}: {', '.join(sorted(fields))}")
            return model()

    def save(self, state: Mapping[str, Any] | BaseModel) -> bool:
        """Save the state with the time. Return False, with one warning, if that fails."""
        try:
            if isinstance(state, BaseModel):
                state = state.model_dump(mode="json", by_alias=True)
            stamped = {**state, "saved_at": format_utc()}
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
            self._set_aside(f"must be a JSON object, not {type(state).__name__}")
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
