"""Every page is well-formed, one file, without scripts, and has its texts escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "path", "circle", "rect"}
ADDRESSES = {"src", "href", "action", "srcset", "xlink:href", "poster", "data", "background"}
ALLOWED_ADDRESS = re.compile(r"#[\w-]+|data:image/png;base64,[A-Za-z0-9+/=]*")
POLICY = re.compile(
    r"default-src 'none'; style-src 'sha256-[A-Za-z0-9+/]{43}='; img-src data:; base-uri 'none'; "
    r"form-action 'none'"
)


class Page(HTMLParser):
    """The elements of a page, and what is wrong with it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.tags: dict[str, int] = {}
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes nothing")

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def values(self, name: str) -> list[str]:
        return [value for _, own, value in self.attributes if own == name]


def problems(text: str) -> list[str]:
    """Return what is wrong with a page, in words."""
    page = Page(text)
    found = list(page.wrong)
    found += [f"<{tag}>" for tag in ("script", "iframe", "object", "embed", "form", "link", "base")
              if tag in page.tags]  # fmt: skip
    for tag, name, value in page.attributes:
        if name.startswith("on") or name == "style":
            found.append(f"{tag} has {name}")
        if name in ADDRESSES and not ALLOWED_ADDRESS.fullmatch(value):
            found.append(f"{tag} leads to {value[:40]}")
    policies = [v for v in page.values("content") if "default-src" in v]
    if len(policies) != 1 or not POLICY.fullmatch(policies[0]):
        found.append("the content security policy is not strict")
    if re.search(r"url\(|@import", text):
        found.append("the style asks for something")
    ids = page.values("id")
    if len(set(ids)) != len(ids):
        found.append("two elements have one id")
    targets = {value[1:] for value in page.values("href") if value.startswith("#")}
    found += [f"#{one} is not there" for one in targets - set(ids)]
    for needed in ("title", "h1", "main"):
        if page.tags.get(needed) != 1:
            found.append(f"{page.tags.get(needed, 0)} × <{needed}>")
    if ("html", "lang", "en") not in page.attributes:
        found.append("the page has no language")
    pictures = page.tags.get("svg", 0) + page.tags.get("img", 0)
    told = (
        len(page.values("aria-label")) + len(page.values("alt")) + len(page.values("aria-hidden"))
    )
    if told < pictures:
        found.append("a picture has no text")
    return found
