"""docs/topics.md tells what the schemas say."""

import importlib.util
from pathlib import Path

import pytest
from pydantic import BaseModel

from shared.schemas import LIBRARY_TOPICS, Topic

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("topics_script", ROOT / "scripts" / "topics.py")
assert SPEC is not None
assert SPEC.loader is not None
topics = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(topics)


class Reading(BaseModel):
    value: float
    unit: str = "kWh"


READ = Topic(
    pattern="{prefix}/{service}/read", payload=Reading, retain=True, description="A value | read"
)


def test_the_document_is_up_to_date() -> None:
    assert topics.main(["--check"]) == 0


def test_it_names_every_topic_of_the_library() -> None:
    document = topics.render({})
    assert [topic.pattern for topic in LIBRARY_TOPICS if topic.pattern not in document] == []


def test_a_row_tells_fields_qos_and_retain_flag() -> None:
    assert (
        "\n## a-service\n\n"
        "| Topic | Payload | QoS | Retained | Description |\n"
        "| --- | --- | --- | --- | --- |\n"
        "| `{prefix}/a-service/read` | `value`, `unit?` | 1 | yes | A value \\| read |\n"
    ) in topics.render({"a-service": [READ]})


def test_services_are_sorted_and_those_without_topics_left_out() -> None:
    document = topics.render({"z-service": [READ], "a-service": [READ], "mute": []})
    headings = [line for line in document.splitlines() if line.startswith("## ")]
    assert headings == ["## All services", "## a-service", "## z-service"]


def test_topics_are_read_from_the_services(tmp_path: Path) -> None:
    (tmp_path / "a-service").mkdir()
    (tmp_path / "a-service" / "schemas.py").write_text(
        "from shared.schemas import Heartbeat, Topic\n"
        'TOPICS = [Topic(pattern="a/b", payload=Heartbeat, description="c")]\n',
        encoding="utf-8",
    )
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "schemas.py").write_text("", encoding="utf-8")
    services = topics.load_services(tmp_path)
    assert [topic.pattern for topic in services["a-service"]] == ["a/b"]
    assert services["bare"] == []


def test_a_stale_document_is_told_and_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "topics.md"
    monkeypatch.setattr(topics, "DOCUMENT", document)
    assert topics.main(["--check"]) == 1
    assert "stale" in capsys.readouterr().err
    assert not document.exists()
    assert topics.main([]) == 0
    assert topics.main(["--check"]) == 0
