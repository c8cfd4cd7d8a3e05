"""Chat templates: from a conversation to the text that the model reads.

A template may come from anyone. Jinja's sandbox keeps it from Python's internals, but `'a' * 10**13` and loops without
end are legal there, so it is rendered in a process of its own, `template_worker`, which can be limited and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from iwp_export.errors import RequestError

SECONDS = 2.0
"""Processor time of one rendering; the first one compiles the template too. A long conversation takes milliseconds."""
PATIENCE = 5
"""Waiting for an answer, in multiples of its processor time: a busy machine, or one that cannot limit that."""
START_SECONDS = 30.0
"""Waiting for the process to start: 0.1 s, or much longer from a cold disk."""
MEMORY_BYTES = 256 << 20
TEXT_CHARACTERS = 8 << 20
"""Of a rendered conversation: several times what a context of a million tokens takes."""
ANSWER_BYTES = 6 * TEXT_CHARACTERS + 100
"""Of a text in JSON, where a character takes up to six bytes."""
OUT_OF_MEMORY = 77
"""The process's exit code."""
OUT_OF_TIME = -27
"""The same, ended by SIGPROF of Linux and macOS."""
PYTHON_VARIABLE = "IWP_EXPORT_PYTHON"

Message = Mapping[str, Any]
"""A turn as chat templates take it: `role`, and `content` as a list of parts `{"type": "image" | "text", ...}`."""


class ChatTemplate:
    """A chat template. A process that renders it starts with the first rendering and ends with this object.

    Args:
        source: the template.
        seconds: processor time that one rendering may take.
    """

    def __init__(self, source: str, seconds: float = SECONDS) -> None:
        self.source, self._seconds = source, seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None

    def render(self, messages: Sequence[Message], special_tokens: Mapping[str, Any]) -> str:
        """The conversation as text, up to where the model's answer begins.

        Args:
            messages: the turns.
            special_tokens: variables such as `bos_token`.

        Raises:
            RequestError: the template is wrong, refuses the messages, or takes too much time or memory; or there is
                no Python to render it with.
        """
        if not messages:
            raise RequestError("a conversation has one message at least")
        variables = {
            **special_tokens,
            "messages": [{name: part for name, part in turn.items() if part is not None} for turn in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        with self._lock:
            if self._worker is None or not self._worker.is_running():
                self._worker = _Worker(self.source, self._seconds)
            reply = self._worker.ask(variables, PATIENCE * self._seconds)
            if reply is None:
                reply = {"error": f"is not rendered: {self._worker.why(self._seconds)}"}
        if "error" in reply:
            raise RequestError(f"the chat template {reply['error']}")
        return str(reply["text"])


class _Worker:
    """A process of `template_worker`.

    Raises:
        RequestError: it cannot be started.
    """

    def __init__(self, source: str, seconds: float) -> None:
        python = _find_python()
        script = Path(__file__).with_name("template_worker.py")
        problem = f"cannot render the chat template: {python} does not run as Python 3.10 or newer"
        remedy = f"set {PYTHON_VARIABLE} to the path of one"
        try:
            self._process = subprocess.Popen(
                [python, "-I", "-S", "-B", str(script), *_jinja_folders()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in the terminal is for this process alone
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            raise RequestError(f"{problem} ({error.strerror}); {remedy}") from error
        self._end = weakref.finalize(self, _end, self._process)
        self._late = False
        limits = {"seconds": seconds, "bytes": MEMORY_BYTES, "characters": TEXT_CHARACTERS}
        if self.ask({"source": source, **limits}, START_SECONDS) != {"ready": True}:
            self._end()
            raise RequestError(f"{problem}; {remedy}")

    def is_running(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: Mapping[str, Any], seconds: float) -> Any:
        """Send a message and return the answer; None, and the process has ended, if none came in this time."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        line = json.dumps(message, default=_plain).encode() + b"\n"
        start, reply = time.monotonic(), None
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            stdin.write(line)
            stdin.flush()
            line = stdout.readline(ANSWER_BYTES)
            if not line:
                self._process.wait(1)  # for its exit code
            reply = json.loads(line.decode("utf-8", "surrogatepass"))
        except (OSError, ValueError, subprocess.TimeoutExpired):
            self._late = time.monotonic() - start >= seconds
        finally:
            timer.cancel()
            if reply is None:  # or Ctrl-C: an answer that comes later must not be taken for the next one
                self._end()
        return reply

    def why(self, seconds: float) -> str:
        """Why there was no answer."""
        code = self._process.returncode
        if self._late or code == OUT_OF_TIME:
            return f"it takes more than {seconds:g} s"
        if code == OUT_OF_MEMORY:
            return f"it takes more memory than {MEMORY_BYTES >> 20} MiB"
        return f"its process ends with {f'signal {-code}' if code < 0 else f'exit code {code}'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what was not yet written
            pipe.close()  # type: ignore[union-attr]


def _find_python() -> str:
    if named := os.environ.get(PYTHON_VARIABLE):
        return named
    if not sys.executable or getattr(sys, "frozen", False):  # a frozen program would start itself
        raise RequestError(
            "cannot render the chat template: that needs a Python to start, and this program has none of its own; "
            f"set {PYTHON_VARIABLE} to the path of one"
        )
    return sys.executable


def _jinja_folders() -> list[str]:
    """Where jinja2 and what it needs lie; the process looks into no other folder of packages."""
    specs = (find_spec("jinja2"), find_spec("markupsafe"))
    return [str(Path(spec.origin).parents[1]) for spec in specs if spec is not None and spec.origin is not None]


def _plain(value: Any) -> Any:
    """What JSON does not know: another mapping as a dictionary, the rest as its type's name, as in transformers."""
    return dict(value) if isinstance(value, Mapping) else f"<{type(value).__name__}>"
