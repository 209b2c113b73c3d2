"""A page as a browser would take it."""

import re
from html.parser import HTMLParser

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}\x00\u202eabc\u2066\ud800&amp;"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text of the page, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def assert_alone(text: str) -> None:
    """Well formed, without script, and with no request to anywhere."""
    page = Page(text)
    assert page.open == []
    assert page.count("script") == page.count("link") == page.count("iframe") == page.count("base") == 0
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
                assert value is not None and value.startswith(("#", "data:image/png;base64,")), (tag, name, value)
            assert "url(" not in (value or "") or "url(#" in (value or "")
    policies = [value["content"] for _, value in page.tags if value.get("http-equiv") == "Content-Security-Policy"]
    assert policies and all(policy and policy.startswith("default-src 'none';") for policy in policies)
