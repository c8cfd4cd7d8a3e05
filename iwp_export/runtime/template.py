"""Chat templates: from a conversation to the text that the model reads."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from iwp_export.errors import RequestError
from iwp_export.runtime.template_limits import LimitError, Meter, weigh
from iwp_export.runtime.template_sandbox import CountingEnvironment

SOURCE_CHARACTERS = 64 << 10
"""Of a template: the longest published ones have some 20,000. Compiling takes up to a second at this size."""
TEXT_CHARACTERS = 8 << 20
"""Of a rendered conversation: several times what a context of a million tokens takes."""
ERROR_CHARACTERS = 200
"""Of a template's own message that an error repeats."""

Message = Mapping[str, Any]
"""A turn as chat templates take it: `role`, and `content` as a list of parts `{"type": "image" | "text", ...}`."""


class ChatTemplate:
    """A chat template, which may come from anyone: it is rendered with limits, see `template_sandbox`.

    What it may use is what transformers gives to templates, so that the text is the same.

    Args:
        source: the template.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._lock = threading.Lock()

    def render(self, messages: Sequence[Message], special_tokens: Mapping[str, Any]) -> str:
        """The conversation as text, up to where the model's answer begins.

        Args:
            messages: the turns.
            special_tokens: variables such as `bos_token`.

        Raises:
            RequestError: the template is wrong, refuses the messages, or takes too much time or memory.
        """
        if not messages:
            raise RequestError("a conversation has one message at least")
        variables = {
            **_plain(special_tokens),
            "messages": [{name: part for name, part in _plain(turn).items() if part is not None} for turn in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            with self._lock:
                return self._render(variables)
        except LimitError as error:
            raise RequestError(f"the chat template is not rendered: {error}") from error
        except (jinja2.TemplateSyntaxError, RecursionError) as error:
            raise RequestError(f"the chat template cannot be read: {_one_line(error)}") from error
        except Exception as error:
            raise RequestError(f"the chat template refuses the conversation: {_one_line(error)}") from error

    def _render(self, variables: Mapping[str, Any]) -> str:
        environment, template = self._compiled
        environment.meter = Meter()
        weigh(variables)
        chunks, length = [], 0
        for chunk in template.generate(variables):
            length += len(chunk)
            if length > TEXT_CHARACTERS:
                raise LimitError(f"it writes more than {TEXT_CHARACTERS:,} characters")
            chunks.append(chunk)
        return "".join(chunks)

    @cached_property
    def _compiled(self) -> tuple[CountingEnvironment, jinja2.Template]:
        if len(self.source) > SOURCE_CHARACTERS:
            raise LimitError(f"it has {len(self.source):,} characters, and {SOURCE_CHARACTERS:,} are read")
        environment = CountingEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_make_dict)
        return environment, environment.from_string(self.source)


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the model's own words for training, and writes its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Any) -> str:
        return str(caller())


def _raise_exception(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > ERROR_CHARACTERS:
        raise LimitError("it formats the date with a long text")
    return datetime.datetime.now().strftime(form)


def _make_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _plain(value: Any) -> Any:
    """A copy of values as JSON knows them; what is none of them is its type's name, as in transformers."""
    if isinstance(value, Mapping):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return None if value is None else f"<{type(value).__name__}>"


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, jinja2.TemplateError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= ERROR_CHARACTERS else f"{text[:ERROR_CHARACTERS]}..."
