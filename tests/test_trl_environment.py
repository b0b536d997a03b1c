"""What TRL plays in benchmarks/versus_trl.py is tau2's own episode, with tau2's own reward."""

import sys
from pathlib import Path

import pytest
from transformers.utils import get_json_schema

from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.demonstrations import plan_for
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.environment.telecom_expert import Act
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import trl_environment as side

SETTINGS = environment_settings(load_config(["domain=telecom"]).econfig)
TASKS = load_tasks("telecom", "test", solo_mode=True)
DONE = {"role": "assistant", "content": '<tool_call>\n{"name": "done", "arguments": {}}\n</tool_call>'}


def solved(task, *, without: str = ""):
    """An episode in which the expert made every call except those to ``without``; not finished yet."""
    episode = side.environment_class(SETTINGS)()
    assert episode.reset(task_id=task.task_id)
    plan = plan_for(task, SETTINGS)
    assert not isinstance(plan, list)
    act: Act | None = next(plan)
    while act is not None:
        result = "" if act.name == without else getattr(episode, act.name)(**act.arguments)
        try:
            act = plan.send(result)
        except StopIteration:
            act = None
    return episode


@pytest.mark.parametrize("task", TASKS[::8], ids=lambda task: task.task_id[:40])
def test_the_expert_solves_the_task_and_without_done_it_does_not(task):
    assert side.tau2_reward([[DONE]], [solved(task)]) == [1.0]
    assert side.tau2_reward([[{"role": "assistant", "content": "Goodbye!"}]], [solved(task)]) == [0.0]
    assert side.tau2_reward([[{"role": "tool", "content": "cut off"}]], [solved(task)]) == [0.0]


def test_a_fix_left_out_fails():
    task = next(task for task in TASKS if "airplane_mode_on" in task.task_id)
    assert side.tau2_reward([[DONE]], [solved(task, without="toggle_airplane_mode")]) == [0.0]


def test_tools_have_the_names_and_arguments_of_tau2():
    made = side.environment_class(SETTINGS)()
    for schema in blueprint("telecom", True).tool_schemas(thinking=False):
        function = schema["function"]
        if function["name"] == "done":
            assert not hasattr(made, "done")
            continue
        seen = get_json_schema(getattr(made, function["name"]))["function"]["parameters"]
        assert set(seen["properties"]) == set(function["parameters"].get("properties", {}))
        assert set(seen.get("required", ())) == set(function["parameters"].get("required", ()))


@pytest.mark.e2e  # importing TRL takes seconds
def test_done_is_left_as_text_and_other_calls_are_read(tmp_path):
    from transformers import AutoTokenizer
    from trl.chat_template_utils import parse_response

    folder = build_tiny_policy(tmp_path, ["check the line. " * 30], vocab_size=320)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.response_template = side.response_template()
    prefix = tokenizer.encode("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    for name, called in (("done", False), ("toggle_data", True)):
        text = f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call><|im_end|>'
        parsed = parse_response(tokenizer, tokenizer.encode(text), prefix=prefix)
        assert bool(parsed.get("tool_calls")) is called
        assert called or name in parsed["content"]
