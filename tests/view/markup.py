"""Reads a page as strictly as a test can: what is open and what is closed, ids, addresses, and text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}
ADDRESSES = {"href", "src", "srcset", "action", "data", "poster", "xlink:href", "background"}


class Markup(HTMLParser):
    """What a page is made of.

    Attributes:
        tags: names of all elements, in their order.
        ids: of all elements.
        addresses: what the page could ask for, or point to.
        texts: text between tags.
        errors: tags that were not closed, or not open.
    """

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.errors: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        self.errors += [f"<{tag}> is not closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._found(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._found(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.errors.append(f"</{tag}> closes nothing, at line {self.getpos()[0]}")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if "style" in self._open:
            self._addresses_in(data)

    def _found(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ADDRESSES:
                self.addresses.append(value or "")
            elif name.startswith("on"):
                self.errors.append(f"<{tag} {name}> runs a script")
            elif name in ("style", "clip-path"):
                self._addresses_in(value or "")

    def _addresses_in(self, style: str) -> None:
        self.addresses += re.findall(r"url\(['\"]?([^'\")]*)", style)
        if "@import" in style:
            self.errors.append("the style sheet imports another")

    @property
    def foreign(self) -> list[str]:
        """Addresses that are neither images in the page nor places in it."""
        inside = ("data:image/png;base64,", "data:image/svg+xml;base64,", "#")
        return [address for address in self.addresses if not address.startswith(inside)]


def check(page: str) -> Markup:
    """Hold a page to what every page must be."""
    markup = Markup(page)
    assert markup.errors == []
    assert markup.foreign == []
    assert {"script", "link", "iframe", "object", "embed"}.isdisjoint(markup.tags)
    assert len(markup.ids) == len(set(markup.ids))
    assert {address[1:] for address in markup.addresses if address[0] == "#"} <= set(markup.ids)
    assert [markup.tags.count(tag) for tag in ("html", "head", "body", "main", "h1")] == [1] * 5
    assert markup.tags[: markup.tags.index("body")].count("title") == 1
    assert ("html", {"lang": "en"}) in markup.attributes
    return markup
