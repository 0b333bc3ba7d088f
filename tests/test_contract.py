"""scripts/contract.py: the payload changes that break consumers, and no others."""

from __future__ import annotations

import importlib.util
import json
from datetime import datetime
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError, create_model

from tests.baked import TEMPLATE

SPEC = importlib.util.spec_from_file_location("contract", TEMPLATE / "scripts/contract.py")
assert SPEC is not None
assert SPEC.loader is not None
contract = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(contract)

REQUIRED = ...


def model(**fields: Any) -> type[BaseModel]:
    """A model of fields given as `name=(type, default)`, or as `name=type` if required."""
    pairs = {
        name: value if isinstance(value, tuple) else (value, REQUIRED)
        for name, value in fields.items()
    }
    made: type[BaseModel] = create_model("Payload", **pairs)  # type: ignore[call-overload]
    return made


def document(direction: str, payload: type[BaseModel]) -> dict[str, Any]:
    """As much of an AsyncAPI document as the comparison reads."""
    schema = payload.model_json_schema(
        mode="serialization" if direction == "send" else "validation",
        ref_template="#/components/schemas/{model}",
    )
    definitions = schema.pop("$defs", {})
    reference = {"$ref": "#/components/schemas/TopLevel"}
    return {
        "channels": {
            "key": {"address": "{prefix}/a", "messages": {"Payload": {"payload": reference}}}
        },
        "operations": {"key": {"action": direction}},
        "components": {"schemas": {**definitions, "TopLevel": schema}},
    }


def breaking(direction: str, old: type[BaseModel], new: type[BaseModel]) -> list[str]:
    """The breaking changes, without the name of the topic in front."""
    lines = contract.breaking_changes(document(direction, old), document(direction, new))
    return [line.partition(": ")[2] for line in lines]


class Zone(BaseModel):
    level: int
    inner: list[Zone] = []


class Level(BaseModel):
    level: int


class WiderZone(BaseModel):
    level: float
    inner: list[WiderZone] = []


Watts = Annotated[float, Field(json_schema_extra={"unit": "W"})]
Kilowatts = Annotated[float, Field(json_schema_extra={"unit": "kW"})]


class Case(NamedTuple):
    """A change of the field `a`, and what it breaks by direction."""

    old: Any
    new: Any
    send: str = ""
    receive: str = ""


CASES = {
    "nothing": Case(int, int),
    "wider number": Case(int, float, send='field "a" changes from integer to number'),
    "narrower number": Case(float, int, receive='field "a" changes from number to integer'),
    "other type": Case(str, int, *['field "a" changes from string to integer'] * 2),
    "optional": Case(int, (int, 0), send='field "a" is optional now'),
    "required": Case((int, 0), int, receive='field "a" is required now'),
    "nullable": Case(int, int | None, send='field "a" changes from integer to integer or null'),
    "another default": Case((int, 0), (int, 1)),
    "description": Case(int, Annotated[int, Field(description="Level")]),
    "wider choice": Case(
        Literal["on"], Literal["on", "off"], send='field "a" changes from "on" to "on" or "off"'
    ),
    "narrower choice": Case(
        Literal["on", "off"], Literal["on"], receive='field "a" changes from "on" or "off" to "on"'
    ),
    "choice from text": Case(str, Literal["on"], receive='field "a" changes from string to "on"'),
    "anything": Case(int, Any, send='field "a" changes from integer to any'),
    "limit": Case(
        int,
        Annotated[int, Field(le=9)],
        receive='field "a" changes from integer to integer (maximum 9)',
    ),
    "other limit": Case(
        Annotated[str, Field(max_length=2)],
        Annotated[str, Field(max_length=3)],
        *['field "a" changes from string (maxLength 2) to string (maxLength 3)'] * 2,
    ),
    "time from text": Case(
        str, datetime, receive='field "a" changes from string to string (date-time)'
    ),
    "items": Case(list[int], list[float], send='field "a[]" changes from integer to number'),
    "values": Case(
        dict[str, int], dict[str, float], send='field "a.*" changes from integer to number'
    ),
    "mapping to model": Case(
        dict[str, str], Level, *['field "a" changes from mapping to object'] * 2
    ),
    "nested and recursive": Case(
        Zone, WiderZone, send='field "a.level" changes from integer to number'
    ),
    "model or text": Case(
        Zone | str, WiderZone | str, send='field "a.level" changes from integer to number'
    ),
    "unit": Case(Watts, Kilowatts, *['field "a" changes its unit from W to kW'] * 2),
    "unit of an optional value": Case(
        (Watts | None, None),
        (float | None, None),
        *['field "a" changes its unit from W to none'] * 2,
    ),
    "first unit": Case(float, Watts),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_change_of_a_field_breaks_by_direction(case: Case) -> None:
    old, new = model(a=case.old, b=int), model(a=case.new, b=int)
    assert breaking("send", old, new) == list(filter(None, [case.send]))
    assert breaking("receive", old, new) == list(filter(None, [case.receive]))


def test_one_of_several_models_is_compared_as_a_whole() -> None:
    for change in ((Level | Zone, Level | WiderZone), (Level | Zone, Level | model(level=str))):
        for old, new in (change, change[::-1]):
            for direction in ("send", "receive"):
                [line] = breaking(direction, model(a=old), model(a=new))[:1]
                assert line == 'field "a" changes from object to object'


@pytest.mark.parametrize("lost", [int, (int, 0), Zone])
def test_a_field_that_is_gone_breaks_readers_and_no_senders(lost: Any) -> None:
    assert breaking("send", model(a=lost), model()) == ['field "a" is gone']
    assert breaking("receive", model(a=lost), model()) == []


def test_a_new_field_breaks_senders_if_it_is_required() -> None:
    assert breaking("send", model(), model(a=Level)) == []
    assert breaking("receive", model(), model(a=Level)) == ['field "a" is required now']
    assert breaking("receive", model(), model(a=(Level | None, None))) == []


def test_a_received_model_that_forbids_further_fields_breaks_senders() -> None:
    class Closed(BaseModel, extra="forbid"):
        b: int

    assert breaking("receive", model(b=int), Closed) == [
        "the payload changes from object to object"
    ]
    assert breaking("send", model(b=int), Closed) == []


def test_a_topic_that_is_gone_breaks() -> None:
    old, new = document("send", model()), document("send", model())
    new["channels"]["other"] = new["channels"].pop("key")
    assert contract.breaking_changes(old, new) == ["a: the topic is gone"]


# Models at random: whatever is not reported must be valid for the other side.


class Kind(NamedTuple):
    """A type, and the JSON values that its schema allows."""

    annotation: Any
    values: st.SearchStrategy[Any]


def ranged(low: int, high: int) -> Kind:
    return Kind(Annotated[int, Field(ge=low, le=high)], st.integers(low, high))


def choice(options: list[Any]) -> Kind:
    return Kind(Literal[tuple(options)], st.sampled_from(options))


def texts(longest: int) -> Kind:
    return Kind(Annotated[str, Field(max_length=longest)], st.text("ab", max_size=longest))


def either(first: Kind, second: Kind) -> Kind:
    return Kind(first.annotation | second.annotation, first.values | second.values)


def array(items: Kind) -> Kind:
    return Kind(list.__class_getitem__(items.annotation), st.lists(items.values, max_size=2))


def mapping(items: Kind) -> Kind:
    keys = st.sampled_from("abc")
    annotation = dict.__class_getitem__((str, items.annotation))
    return Kind(annotation, st.dictionaries(keys, items.values, max_size=2))


def as_model(fields: dict[str, tuple[Kind, bool]]) -> Kind:
    """A model of fields, each of a kind and required or not."""
    annotations = {
        name: kind.annotation if is_required else (kind.annotation, None)
        for name, (kind, is_required) in fields.items()
    }
    required = {name: kind.values for name, (kind, is_required) in fields.items() if is_required}
    optional = {
        name: kind.values for name, (kind, is_required) in fields.items() if not is_required
    }
    return Kind(model(**annotations), st.fixed_dictionaries(required, optional=optional))


NUMBERS = st.sampled_from(
    [Kind(int, st.integers(-9, 9)), Kind(float, st.floats(-9, 9) | st.integers(-9, 9))]
) | st.builds(ranged, st.integers(-2, 0), st.integers(1, 3))
TEXTS = (
    st.just(Kind(str, st.text("ab", max_size=3)))
    | st.builds(texts, st.integers(0, 2))
    | st.lists(st.sampled_from(["a", "b", 1, 2, True, None]), min_size=1, max_size=3).map(choice)
)
OTHERS = st.sampled_from([Kind(bool, st.booleans()), Kind(type(None), st.none())])
KINDS = st.recursive(
    NUMBERS | TEXTS | OTHERS,
    lambda kinds: st.one_of(
        kinds.map(array),
        kinds.map(mapping),
        st.builds(either, kinds, kinds),
        st.dictionaries(st.sampled_from("abc"), st.tuples(kinds, st.booleans())).map(as_model),
    ),
    max_leaves=3,
)
FIELDS = st.tuples(KINDS, st.booleans())
# A busy machine takes its time to build a model.
UNHURRIED: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": [HealthCheck.too_slow],
}


@st.composite
def changes(draw: st.DrawFn) -> tuple[Kind, Kind]:
    """A model before and after the change of one field, often to a type much like its own."""
    common = draw(st.dictionaries(st.sampled_from("ab"), FIELDS, max_size=1))
    kinds = draw(st.sampled_from([NUMBERS, TEXTS, KINDS]))
    required = st.tuples(kinds, st.just(True))
    either_way = st.tuples(kinds, st.booleans())
    old, new = draw(
        st.tuples(required, required)
        | st.tuples(either_way, either_way)
        | st.tuples(st.none(), either_way)
    )
    pair = as_model({**common, **({"c": old} if old else {})}), as_model({**common, "c": new})
    return pair if draw(st.booleans()) else pair[::-1]


@settings(max_examples=200, **UNHURRIED)
@given(st.data(), changes(), st.sampled_from(["send", "receive"]))
def test_pydantic_accepts_every_payload_whose_change_is_not_reported(
    data: st.DataObject, change: tuple[Kind, Kind], direction: str
) -> None:
    old, new = change
    writer, reader = (new, old) if direction == "send" else (old, new)
    for value in data.draw(st.lists(writer.values, min_size=3, max_size=5)):
        payload = json.dumps(value)
        writer.annotation.model_validate_json(payload)
        try:
            reader.annotation.model_validate_json(payload, strict=True)
        except ValidationError:
            assert breaking(direction, old.annotation, new.annotation) != []


@settings(max_examples=50, **UNHURRIED)
@given(st.dictionaries(st.sampled_from("abc"), FIELDS).map(as_model))
def test_a_model_breaks_nothing_for_itself(kind: Kind) -> None:
    for direction in ("send", "receive"):
        assert breaking(direction, kind.annotation, kind.annotation) == []
