"""Chat templates: the text that transformers renders, and limits where a template is hostile."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from iwp_export.errors import RequestError
from iwp_export.runtime.processor import assistant_message, user_message
from iwp_export.runtime.template import PYTHON_VARIABLE, ChatTemplate
from tests.runtime.chat_templates import DEEP, HOSTILE, TEMPLATES
from tests.runtime.toy import ASSETS

CONVERSATION = [
    user_message("  what is {{ 1 }} <b>here</b> ?\n", 2),
    assistant_message("<think>\nhm\n</think>\n\nA “cup” \ud800."),
    user_message("and there ?", 0),
]
SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>"}
LITTLE_TIME = 0.1
OBEDIENT = "{% if bos_token == 'hang' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}\
{% elif bos_token == 'fill' %}{{ 'a' * 10**13 }}{% endif %}{{ bos_token }}"
"""Does what its special token says, else writes it."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ASSETS)


@pytest.mark.parametrize("name", [*TEMPLATES, "tiny-llava"])
def test_equals_transformers(tokenizer: Any, name: str) -> None:
    source = TEMPLATES.get(name) or tokenizer.chat_template
    template = ChatTemplate(source)
    for messages in (CONVERSATION[:1], CONVERSATION):
        expected = tokenizer.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True
        )
        assert template.render(messages, tokenizer.special_tokens_map) == expected
        assert len(expected) > 20


def test_values_that_are_no_json(tokenizer: Any) -> None:
    """As in transformers: an object's methods are out of reach, and what is None is not there."""
    source = "{{ messages }}{{ messages[0].image is defined }}"
    messages = [{"role": "user", "content": ({"type": "image", "image": object()}, 1, 2.5, True), "name": None}]
    expected = tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False)
    assert ChatTemplate(source).render(messages, {}) == expected.replace("(", "[").replace(")", "]")


def test_names_and_filters_of_transformers(tokenizer: Any) -> None:
    source = "{{ dict.fromkeys('ab', 1) }}{{ 'a'.center(5) }}{{ lipsum is defined }}{{ [[1], [2]]|sum(start=[]) }}\
{{ 'a'.translate({97: 'b'}) }}{{ strftime_now('%Y') }}{{ 10**10**2 }}{{ namespace(self=1).self }}{{ {1: 'é<'}|tojson }}"
    expected = tokenizer.apply_chat_template(CONVERSATION, chat_template=source, tokenize=False)
    assert ChatTemplate(source).render(CONVERSATION, {}) == expected


def refusal(source: str, seconds: float = LITTLE_TIME) -> str:
    with pytest.raises(RequestError) as caught:
        ChatTemplate(source, seconds).render(CONVERSATION, SPECIAL)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert message.startswith("the chat template ")
    return message


@pytest.mark.parametrize("source", [*HOSTILE, *DEEP.values()], ids=[*map(str, range(len(HOSTILE))), *DEEP])
def test_hostile_templates(source: str) -> None:
    assert "its process ends" not in refusal(source)


def test_memory_of_hostile_templates_is_bounded() -> None:
    """This process does not notice, and the other one has a limit."""
    pytest.importorskip("resource")
    code = """
import resource
from iwp_export.errors import RequestError
from iwp_export.runtime.template import ChatTemplate
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in (
    "{{ 'a' * 10**13 }}",
    "{{ range(99999)|list * 99999 }}",
    "{% set n = namespace(x='a') %}{% for i in range(64) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% for i in range(1000) %}{{ 'a' * 10000 }}{% endfor %}",
):
    try: ChatTemplate(source).render([{"role": "user", "content": "a"}], {})
    except RequestError: pass
    else: raise SystemExit(source)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    grown, other = (int(line) * (1 if sys.platform == "darwin" else 1024) for line in done.stdout.split())
    assert grown < 32 << 20
    assert other < 320 << 20 or sys.platform == "darwin"


def test_what_a_template_says_is_shown() -> None:
    message = refusal("{{ raise_exception('After the system message, roles must\n alternate') }}")
    assert message == "the chat template refuses the conversation: After the system message, roles must alternate"
    assert "cannot be read: No filter named 'no_such'" in refusal("{{ 'a'|no_such }}")
    assert "access to attribute 'append'" in refusal("{{ [1].append(2) }}")
    assert "ZeroDivisionError" in refusal("{{ 1 / 0 }}")
    assert "takes more than 0.1 s" in refusal("{{ 10**(10**10) }}")
    assert "takes more memory than 256 MiB" in refusal("{{ 'a' * 10**13 }}", 10)
    assert "writes more than 8,388,608 characters" in refusal("{{ 'a' * 8388609 }}", 10)


def test_the_longest_text() -> None:
    """In characters that take the most bytes, as JSON and in memory."""
    for character in ("\x01", "\U0001f600"):
        text = ChatTemplate("{{ bos_token * 8388608 }}").render(CONVERSATION, {"bos_token": character})
        assert text == character * 8388608


def test_waiting_is_bounded_where_processor_time_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iwp_export.runtime.template.PATIENCE", 0.01)
    start = time.monotonic()
    assert "takes more than 30 s" in refusal("{% for i in range(99999) %}{{ range(99999)|sum }}{% endfor %}", 30)
    assert time.monotonic() - start < 10


def test_an_empty_conversation() -> None:
    with pytest.raises(RequestError, match="one message at least"):
        ChatTemplate("x").render([], {})


def process_id(template: ChatTemplate) -> int:
    worker = template._worker
    assert worker is not None
    return worker._process.pid


def is_there(pid: int) -> bool:
    """Whether a process runs, or is a zombie."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def say(template: ChatTemplate, word: str) -> str:
    return template.render(CONVERSATION, {"bos_token": word})


def test_one_process_renders_until_it_ends() -> None:
    template = ChatTemplate(OBEDIENT, LITTLE_TIME)
    assert template._worker is None
    used = set()
    for _ in range(3):
        assert [say(template, word) for word in ("yes", "no")] == ["yes", "no"]
        used.add(process_id(template))
    assert len(used) == 1
    for word in ("hang", "fill"):
        with pytest.raises(RequestError, match="takes more"):
            say(template, word)
        assert say(template, "again") == "again"
    os.kill(process_id(template), signal.SIGKILL)
    time.sleep(0.1)
    assert say(template, "again") == "again"
    last = process_id(template)
    assert is_there(last)
    del template
    gc.collect()
    assert not is_there(last)


def test_each_thread_gets_its_own_text() -> None:
    template = ChatTemplate(OBEDIENT)
    words = [f"word {number}" for number in range(200)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda word: say(template, word), words)) == words


@pytest.fixture
def alarm() -> Iterator[None]:
    """Ctrl-C, a second from now."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarm")
def test_an_answer_that_was_not_waited_for_is_not_taken_for_the_next() -> None:
    template = ChatTemplate(OBEDIENT, 30)
    with pytest.raises(KeyboardInterrupt):
        say(template, "hang")
    assert say(template, "yes") == "yes"


@pytest.mark.parametrize("word", ["yes", "hang"])
def test_the_process_ends_with_a_parent_that_is_killed(word: str) -> None:
    code = f"""
import os, signal, sys, threading, time
from iwp_export.runtime.template import ChatTemplate
template = ChatTemplate({OBEDIENT!r}, 0.5)
def say(word): return template.render([{{"role": "user"}}], {{"bos_token": word}})
say("yes")
pid = template._worker._process.pid
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.killpg(0, signal.SIGINT)  # Ctrl-C in a terminal: it is not for the other process
say("yes")
assert template._worker._process.pid == pid
print(pid, flush=True)
threading.Thread(target=say, args=({word!r},)).start()
time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert done.returncode == -signal.SIGKILL and done.stderr == ""
    pid, end = int(done.stdout), time.monotonic() + 20
    while running(pid):
        assert time.monotonic() < end
        time.sleep(0.05)


def running(pid: int) -> bool:
    """Whether a process runs; whoever inherited a zombie may not have noticed."""
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.parametrize("executable", ["", None, "/bin/cat", "/bin/true", "/no/such/python"])
def test_a_program_that_is_no_python(executable: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    real = sys.executable
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(RequestError, match=f"Python.*; set {PYTHON_VARIABLE} to the path of one") as caught:
        ChatTemplate("x").render(CONVERSATION, {})
    assert "\n" not in str(caught.value) and (executable or "none of its own") in str(caught.value)
    monkeypatch.setenv(PYTHON_VARIABLE, real)
    assert ChatTemplate("x").render(CONVERSATION, {}) == "x"


def test_a_frozen_program_is_not_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(RequestError, match=PYTHON_VARIABLE):
        ChatTemplate("x").render(CONVERSATION, {})


def test_another_python_needs_no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one below the virtual environment, which has no jinja2."""
    monkeypatch.setenv(PYTHON_VARIABLE, str(Path(sys.executable).resolve()))
    assert ChatTemplate("x").render(CONVERSATION, {}) == "x"
