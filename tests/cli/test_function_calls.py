"""`smc run --functions` with the counting program, which has no say in what it calls."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from smc.cli import main
from smc.cli.function_calls import ToolUse
from smc.runtime import load
from smc.structured.answer_form import tools_form
from smc.structured.functions import functions_of_tools

PARAMETERS = {
    "type": "object",
    "properties": {"on": {"type": "boolean"}, "level": {"enum": [1, 2]}},
    "required": ["on", "level"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "light", "description": "Switch it.", "parameters": PARAMETERS}}]
SOURCE = 'def light(on: bool, level: Literal[1, 2]):\n    """Switch it."""\n    raise SystemExit\n'


def test_a_call_is_printed(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "home.py").write_text(SOURCE)
    command = ["run", str(artifact), "x", "--functions", str(tmp_path / "home.py"), "--ctx", "2000", "-q"]
    assert main.run([*command, "--must-call", "-n", "1500", "--temperature", "1", "--seed", "1"]) == 0
    calls = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert calls and {call["name"] for call in calls} == {"light"}
    assert all(isinstance(call["arguments"]["on"], bool) for call in calls)
    assert main.run([*command, "-n", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["calls"] == [] and answer["seconds"] > 0


def test_a_conversation_with_functions(artifact: Path, tmp_path: Path):
    """The functions are in the prompt, and what is no call is shown as text."""
    (tmp_path / "home.py").write_text(SOURCE)
    options = ["--ctx", "4000", "-q", "-n", "9"]
    runner = CliRunner()
    plain = runner.invoke(main.cli, ["chat", str(artifact), *options], input="hello\n", catch_exceptions=False)
    functions = ["--functions", str(tmp_path / "home.py")]
    told = runner.invoke(main.cli, ["chat", str(artifact), *options, *functions], input="hello\n")
    assert (plain.exit_code, told.exit_code) == (0, 0)
    assert told.stdout_bytes != plain.stdout_bytes
    with load(artifact, context_length=4000, threads=1) as model:
        form = tools_form(model, [{"role": "user", "content": "hello"}], TOOLS)
        expected = model.generate(model.apply_chat_template(form.messages), max_tokens=9, show_special=True).text
    assert told.stdout_bytes.decode() == expected + "\n"


def test_calls_in_an_answer(artifact: Path, capsys: pytest.CaptureFixture[str]):
    with load(artifact, threads=1) as model:
        tools = ToolUse(model, functions_of_tools(TOOLS))
        tools.prompt([{"role": "user", "content": "hello"}])
        tools.print_calls('Yes. <tool_call>\n{"name": "light", "arguments": {"on": true, "level": 2}}\n</tool_call>')
    assert json.loads(capsys.readouterr().out) == {"name": "light", "arguments": {"on": True, "level": 2}}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--must-call"], "--must-call needs --functions"),
        (["--functions", "missing.py"], "missing.py can't be read"),
        (["--functions", "home.py", "--raw"], "leave out --raw"),
    ],
)
def test_bad_input(artifact: Path, options: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(["run", str(artifact), "x", *options]) == 2
    assert named in capsys.readouterr().err
