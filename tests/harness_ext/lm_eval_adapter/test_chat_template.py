"""Chat templates are tried before a model is loaded, and refused in a sentence."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness_ext.demo import demo_path
from harness_ext.errors import UserError
from harness_ext.lm_eval_adapter.chat_template import ChatTemplate

ROLES = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ m.content }} {% endfor %}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The embedded model in a folder of the test's own."""
    return Path(shutil.copytree(demo_path(), tmp_path / "model"))


@pytest.mark.slow
def test_a_tokenizer_without_a_chat_template(folder: Path) -> None:
    with pytest.raises(UserError, match="has no chat template, as is usual of base models"):
        ChatTemplate({"pretrained": str(folder)}, True)
    with pytest.raises(UserError, match=r"^--apply_chat_template: nowhere:"):
        ChatTemplate({"pretrained": str(folder), "tokenizer": "nowhere"}, True)


@pytest.fixture
def chat(folder: Path) -> Path:
    """A model whose template takes no system turn and wants the roles to alternate."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": ROLES}))
    return folder


@pytest.mark.slow
def test_a_template_drops_the_system_turn_as_lm_eval_does(chat: Path) -> None:
    template = ChatTemplate({"pretrained": str(chat)}, True)
    history = [{"role": "system", "content": "short"}, {"role": "user", "content": "1 + 1"}]
    assert template.apply(history).strip() == "1 + 1"


LOOP = "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("hello", "it leaves out what the user says"),
        ("  ", "it leaves out what the user says"),
        ("{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}", "leaves out what the"),
        ("{% for m in messages %}{{ m.content|upper|tojson }}{% endfor %}{{ 'a' * 2000000 }}", "it makes 2,000,0"),
        (LOOP + "{{ messages[0].content }}", "it has not ended after 0.2 seconds"),
        ("{% for m in %}", "Expected an expression"),
        ("{{ messages.__class__.__mro__ }}", "is unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "maximum recursion depth exceeded"),
        (3, "Can't compile non template nodes"),
        ([3], "'int' object is not subscriptable"),
        ({"tool_use": "x"}, "multiple chat templates with no default"),
        ("", "has no chat template"),
    ],
)
def test_a_template_that_makes_no_prompts(folder: Path, monkeypatch, template: Any, words: str) -> None:
    from types import SimpleNamespace

    def conversation(document: Any, chat_template: Any, **settings: Any) -> str:
        return chat_template([{"role": "user", "content": document}])

    if "seconds" in words:
        monkeypatch.setattr("harness_ext.lm_eval_adapter.chat_template.PATIENCE_SECONDS", 0.2)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    task: Any = SimpleNamespace(
        config=SimpleNamespace(num_fewshot=0),
        doc_to_prefix=lambda document: None,
        fewshot_context=conversation,
        task_name="sums",
    )
    settings: Any = SimpleNamespace(system_instruction=None, fewshot_as_multiturn=False)
    with pytest.raises(UserError, match="^--apply_chat_template: ") as refused:
        ChatTemplate({"pretrained": str(folder)}, True).check(task, "1 + 1", settings)
    assert words in str(refused.value) and len(str(refused.value)) < 600 + len(str(folder))


@pytest.mark.slow
def test_a_conversation_that_the_template_refuses_is_told_before_loading(lm_eval, chat: Path, monkeypatch) -> None:
    monkeypatch.setattr("lm_eval.models.huggingface.HFLM._create_model", lambda *args, **kwargs: pytest.fail("loaded"))
    (chat / "tokenizer_config.json").write_text(
        (chat / "tokenizer_config.json").read_text().replace("loop.index0 % 2 == 0", "loop.index0 % 2 == 1")
    )
    ran = lm_eval(
        *("run", "--model", "hf", "--model_args", f"pretrained={chat}", "--tasks", "int_mult", "--limit", 4),
        *("--device", "cpu", "--recipe", "svd", "--apply_chat_template"),
    )
    assert ran.code == 2 and "Traceback" not in ran.err
    assert "refuses the conversation of 'int_mult' (roles must alternate)" in ran.err
    assert "leave --apply_chat_template out" in ran.err
