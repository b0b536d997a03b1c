"""What the proxy measures of a turn, and the messages of a row, go with the trajectory."""

from __future__ import annotations

import pytest

from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.rollout.proxy.rig import Rig

USER = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize("stream", [False, True])
async def test_times_and_messages_of_turns(stream: bool) -> None:
    async with Rig(ProxySettings(request_timeout=5)) as rig:
        session = rig.store.start(task_id="t")
        rig.engine.delay = 0.02
        rig.engine.script.extend(["one", "two"])
        messages = list(USER)
        for said in ("one", "two"):
            answer = await rig.post(session.api_key, {"messages": messages, "stream": stream})
            assert answer.status_code == 200
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "and?"}]
        (row,) = rig.store.export(session.session_id)
        shown = rig.store.export_json(session.session_id)
    assert [message["content"] for message in row.messages] == ["x", "one", "and?", "two"]
    assert [turn.message for turn in row.turns] == [1, 3]
    first, second = row.turns
    assert first.engine_s >= 0.019 and second.engine_s >= 0.019
    assert 0 <= first.began_s <= second.began_s - first.engine_s + 0.005
    assert not {"message", "engine_s", "queue_s", "began_s"} & shown[0]["turns"][0].keys(), "outside programs get none"
