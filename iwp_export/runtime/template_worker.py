"""Renders one chat template in a process of its own, with limits of the operating system. `template` starts it.

It runs by path and imports jinja2 and the standard library alone; its arguments are the folders of jinja2. It reads
lines of JSON: first the template and the limits, then the variables of one rendering each, answered by `{"text": ...}`
or `{"error": ...}`. It ends with its input, or when a rendering passes a limit.

Linux bounds memory and processor time, macOS processor time. Windows bounds neither: there only `template`'s clock
ends a rendering, and what it takes in memory until then is not bounded.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import signal
import sys
from typing import Any

if __name__ == "__main__":
    sys.path.extend(sys.argv[1:])

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

OUT_OF_MEMORY = 77
"""Exit code; `template` has the same number."""
ERROR_CHARACTERS = 200
"""Of a template's own message that an error repeats."""


def main() -> None:
    lines = sys.stdin.buffer
    limits = json.loads(lines.readline())
    limit_process(limits["bytes"])
    answer({"ready": True})
    template = None
    for line in lines:
        limit_time(limits["seconds"])
        try:
            template = template or make_environment().from_string(limits["source"])
            reply = render(template, json.loads(line), limits["characters"])
        except MemoryError:
            raise
        except Exception as error:
            reply = {"error": f"{'refuses the conversation' if template else 'cannot be read'}: {one_line(error)}"}
        limit_time(0)
        answer(reply)


def limit_process(count: int) -> None:
    """Bound memory, and let a template that breaks out of the sandbox start no process and write no file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    # What the libraries map is no data, so the address space is larger.
    for name, most in {"DATA": count, "AS": 2 * count, "CORE": 0, "FSIZE": 0, "NPROC": 0}.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not on this system, or a lower limit holds
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def limit_time(seconds: float) -> None:
    """End the process after this much processor time, which a busy machine does not shorten; 0 lifts the limit."""
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(reply: dict[str, Any]) -> None:
    line = json.dumps(reply, ensure_ascii=False).encode("utf-8", "surrogatepass")
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def render(template: jinja2.Template, variables: dict[str, Any], characters: int) -> dict[str, str]:
    chunks, length = [], 0
    for chunk in template.generate(variables):
        length += len(chunk)
        if length > characters:
            return {"error": f"is not rendered: it writes more than {characters:,} characters"}
        chunks.append(chunk)
    return {"text": "".join(chunks)}


def make_environment() -> ImmutableSandboxedEnvironment:
    """What transformers gives to chat templates (`utils/chat_template_utils.py`), so that the text is the same."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals.update(
        raise_exception=raise_exception, strftime_now=strftime_now, dict=MakeDict(), namespace=PublicNamespace
    )
    return environment


class GenerationTag(Extension):
    """`{% generation %}`, which marks the model's own words for training, and writes its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> Any:
        return caller()


class MakeDict:
    """`dict` without the type's own attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class PublicNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # Jinja's signature: `namespace(self=...)` is legal
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own escapes what HTML does not like."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message: object) -> None:
    raise jinja2.TemplateError(message)  # type: ignore[arg-type]


def strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= ERROR_CHARACTERS else f"{text[:ERROR_CHARACTERS]}..."


if __name__ == "__main__":
    try:
        main()
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # nothing that would need memory
