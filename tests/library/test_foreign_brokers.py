"""The client with the broker that the command FOREIGN_BROKER starts, with its `{port}`."""

import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import _Process
from tests.library.conftest import MakeClient
from tests.library.probes import Recorder
from tests.library.test_mqtt_messages import assert_retained_is_handled_once, connected


class ForeignBroker(_Process):
    """A broker that another project makes."""

    kind = "foreign"

    def command(self) -> list[str]:
        return shlex.split(os.environ["FOREIGN_BROKER"].format(port=self.port))


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[ForeignBroker]:
    broker = ForeignBroker(tmp_path)
    broker.start()
    yield broker
    broker.stop()


@pytest.mark.parametrize(("count", "qos"), [(1500, 1), (3000, 0)])
async def test_each_of_thousands_of_retained_messages_is_handled_once(
    foreign: ForeignBroker,
    make_client: MakeClient,
    topic_prefix: str,
    count: int,
    qos: Any,
) -> None:
    client = make_client(foreign)
    await assert_retained_is_handled_once(foreign, client, topic_prefix, count, qos)
    assert client._connection._connection_id == 1


async def test_what_is_sent_while_a_service_is_stopped_arrives_once(
    foreign: ForeignBroker, make_client: MakeClient, topic_prefix: str
) -> None:
    publisher, first = make_client(foreign, "publisher"), make_client(foreign)
    first.subscribe(f"{topic_prefix}/flow", print)
    await connected(publisher)
    await connected(first)
    await first.disconnect()
    first._session.close()
    for n in range(50):
        await publisher.publish(f"{topic_prefix}/flow", n)
    second, recorder = make_client(foreign), Recorder()
    assert second.client_id == first.client_id
    second.subscribe(f"{topic_prefix}/flow", recorder)
    await connected(second)
    await recorder.until_payload(49)
    # MQTT asks for their order, which mochi does not keep.
    assert sorted(recorder.payloads) == list(range(50))
