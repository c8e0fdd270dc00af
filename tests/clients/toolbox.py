"""Five tools whose parameters use what real ones use: enums, bounds, arrays, nested objects.

They are declared in tools.json, which the tests in Node read too."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

TOOLS = json.loads(Path(__file__).with_name("tools.json").read_text())

_VALIDATORS = {tool["name"]: Draft202012Validator(tool["parameters"]) for tool in TOOLS}


def check_arguments(name: str, arguments: str) -> dict[str, Any]:
    """Raises unless they are JSON that the tool's schema accepts."""
    value = json.loads(arguments)
    _VALIDATORS[name].validate(value)
    return value


def run_tool(name: str, arguments: str) -> str:
    """What the tool says. Short, because a model on two cores has to read it."""
    check_arguments(name, arguments)
    return '{"ok":true}'


def call_output(call_id: str, output: str) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}
