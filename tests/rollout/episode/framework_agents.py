"""Agents of other frameworks. Each calls a tool twice, then answers, and returns its last text.

    python framework_agents.py NAME BASE_URL API_KEY

runs one agent in any environment that has its framework, because only that framework is imported.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

TASK = "Look around twice, then say what you see."


def look(at: str) -> str:
    """Look at something.

    Args:
        at: where to look
    """
    return f"nothing at {at}"


async def langchain(base_url: str, key: str) -> str:
    """``langchain.agents.create_agent`` with a name, which LangChain writes into every message of the agent."""
    from langchain.agents import create_agent
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model="policy", base_url=base_url, api_key=key, max_retries=0)
    agent = create_agent(model, tools=[look], system_prompt="You look at things.", name="watcher")
    state = await agent.ainvoke({"messages": [{"role": "user", "content": TASK}]})
    return str(state["messages"][-1].content)


async def openai_agents(base_url: str, key: str) -> str:
    """OpenAI's Agents SDK with the chat completions API."""
    import openai
    from agents import (
        Agent,
        OpenAIChatCompletionsModel,
        Runner,
        function_tool,
        set_tracing_disabled,
    )

    set_tracing_disabled(True)
    client = openai.AsyncOpenAI(base_url=base_url, api_key=key, max_retries=0)
    model = OpenAIChatCompletionsModel(model="policy", openai_client=client)
    agent = Agent(name="watcher", instructions="You look at things.", model=model, tools=[function_tool(look)])
    return str((await Runner.run(agent, TASK)).final_output)


async def smolagents(base_url: str, key: str) -> str:
    """The tool-calling agent of smolagents."""
    from smolagents import OpenAIServerModel, ToolCallingAgent, tool

    model = OpenAIServerModel(model_id="policy", api_base=base_url, api_key=key)
    agent = ToolCallingAgent(tools=[tool(look)], model=model, max_steps=3, verbosity_level=0)
    return str(await asyncio.to_thread(agent.run, TASK))


AGENTS: dict[str, Callable[[str, str], Awaitable[Any]]] = {
    "langchain": langchain,
    "openai_agents": openai_agents,
    "smolagents": smolagents,
}

if __name__ == "__main__":
    print(asyncio.run(AGENTS[sys.argv[1]](*sys.argv[2:4])))  # type: ignore[arg-type]
