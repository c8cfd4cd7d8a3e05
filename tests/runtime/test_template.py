"""Chat templates: the text that transformers renders, and limits where a template is hostile."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest

from iwp_export.errors import RequestError
from iwp_export.runtime.processor import assistant_message, user_message
from iwp_export.runtime.template import ChatTemplate
from tests.runtime.chat_templates import DEEP, HOSTILE, TEMPLATES
from tests.runtime.toy import ASSETS

CONVERSATION = [
    user_message("  what is {{ 1 }} <b>here</b> ?\n", 2),
    assistant_message("<think>\nhm\n</think>\n\nA “cup”."),
    user_message("and there ?", 0),
]
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS)


@pytest.mark.parametrize("name", [*TEMPLATES, "tiny-llava"])
@pytest.mark.parametrize("turns", [1, 3])
def test_equals_transformers(tokenizer: Any, name: str, turns: int) -> None:
    source = TEMPLATES.get(name) or tokenizer.chat_template
    messages = CONVERSATION[:turns]
    expected = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(source).render(messages, tokenizer.special_tokens_map) == expected
    assert len(expected) > 20


def test_values_that_are_no_json(tokenizer: Any) -> None:
    """As in transformers: an object's methods are out of reach, and what is None is not there."""
    source = "{{ messages }}{{ messages[0].image is defined }}"
    messages = [{"role": "user", "content": ({"type": "image", "image": object()}, 1, 2.5, True), "name": None}]
    expected = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(source).render(messages, {}) == expected.replace("(", "[").replace(")", "]")


def test_rendering_again_begins_with_a_full_meter() -> None:
    template = ChatTemplate("{% for i in range(400) %}{{ 'a' * 10000 }}{% endfor %}")
    for _ in range(70):  # more than one rendering may make, together
        assert len(template.render(CONVERSATION, SPECIAL)) == 4_000_000


def refusal(source: str) -> str:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source).render(CONVERSATION, SPECIAL)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert message.startswith("the chat template ")
    return message


@pytest.fixture
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iwp_export.runtime.template_limits.SECONDS", 0.25)


@pytest.mark.usefixtures("little_time")
@pytest.mark.parametrize("source", [*HOSTILE, *DEEP.values()], ids=[*map(str, range(len(HOSTILE))), *DEEP])
def test_hostile_templates(source: str) -> None:
    start = time.thread_time()
    message = refusal(source)
    assert time.thread_time() - start < 4, message  # compiling what is just short enough takes most of it


def test_memory_of_hostile_templates_is_bounded() -> None:
    """All of them in one process grow it by less than 512 MiB."""
    pytest.importorskip("resource")
    code = """
import resource
from iwp_export.errors import RequestError
from iwp_export.runtime import template_limits
from iwp_export.runtime.template import ChatTemplate
from tests.runtime.chat_templates import DEEP, HOSTILE
template_limits.SECONDS = 0.25
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in (*HOSTILE, *DEEP.values()):
    try: ChatTemplate(source).render([{"role": "user", "content": "a"}], {})
    except RequestError: pass
    else: raise SystemExit(source)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    grown = int(done.stdout) / (1 if sys.platform == "darwin" else 1 / 1024)
    assert grown < 512 << 20


@pytest.mark.usefixtures("little_time")
def test_what_a_template_says_is_shown() -> None:
    message = refusal("{{ raise_exception('After the system message, roles must\n alternate') }}")
    assert message == "the chat template refuses the conversation: After the system message, roles must alternate"
    assert "No filter named 'center'" in refusal("{{ 'a'|center(3) }}")
    assert "access to attribute 'center'" in refusal("{{ 'a'.center(3) }}")
    assert "more than 0.25 s" in refusal(
        "{% for i in range(99999) %}{% for j in range(999) %}{% if i == j %}{% endif %}{% endfor %}{% endfor %}"
    )
    assert "more than 256 MiB" in refusal("{{ 'a' * 10**13 }}")
    assert "8,388,608 characters" in refusal("{% for i in range(1000) %}{{ 'a' * 10000 }}{% endfor %}")


def test_an_empty_conversation() -> None:
    with pytest.raises(RequestError, match="one message at least"):
        ChatTemplate("x").render([], {})
