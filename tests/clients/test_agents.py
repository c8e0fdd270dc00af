"""openai-agents over its WebSocket model: the loop that real agents run."""

from itertools import pairwise

from agents import (
    Agent,
    FunctionTool,
    ModelSettings,
    RunConfig,
    Runner,
    ToolsToFinalOutputResult,
)
from agents.models.openai_responses import OpenAIResponsesWSModel

from conftest import Server
from toolbox import TOOLS, run_tool

CALLS = 20


def function_tool(tool: dict, calls: list[str]) -> FunctionTool:
    async def invoke(_context, arguments: str) -> str:
        calls.append(tool["name"])
        return run_tool(tool["name"], arguments)

    return FunctionTool(
        name=tool["name"],
        description=tool["description"],
        params_json_schema=tool["parameters"],
        on_invoke_tool=invoke,
        strict_json_schema=True,
    )


async def test_twenty_calls_in_one_run(server: Server, judged):
    calls: list[str] = []

    def stop_after_the_last(_context, _results) -> ToolsToFinalOutputResult:
        return ToolsToFinalOutputResult(
            is_final_output=len(calls) >= CALLS, final_output=f"{len(calls)} calls"
        )

    model = OpenAIResponsesWSModel(server.model, server.async_client())
    agent = Agent(
        name="errands",
        instructions="Call tools.",
        model=model,
        # Without store a response is known on its own connection only, so a run that ends well
        # has used one socket.
        model_settings=ModelSettings(
            tool_choice="required",
            parallel_tool_calls=False,
            temperature=0,
            store=False,
            max_tokens=256,
        ),
        tools=[function_tool(tool, calls) for tool in TOOLS],
        # Otherwise the agent asks for `auto` after its first call.
        reset_tool_choice=False,
        tool_use_behavior=stop_after_the_last,
    )
    judged_before = judged.events
    result = await Runner.run(
        agent,
        "Run my errands.",
        max_turns=CALLS + 1,
        auto_previous_response_id=True,
        run_config=RunConfig(tracing_disabled=True),
    )
    await model.close()

    assert result.final_output == f"{CALLS} calls"
    usages = [response.usage for response in result.raw_responses]
    assert len(usages) == CALLS
    for before, after in pairwise(usages):
        new = after.input_tokens - (before.input_tokens + before.output_tokens)
        computed = after.input_tokens - after.input_tokens_details.cached_tokens
        assert new > 0 and computed - new in (0, 1)
    assert judged.events - judged_before >= 4 * CALLS
