# SPDX-License-Identifier: Apache-2.0
"""Links and pictures of a built site: python .ci/site_links.py FOLDER

Every page, heading and picture that a page of the site links to must be there. The network is not asked.
"""

from __future__ import annotations

import pathlib
import sys
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a page can be linked at, and what it links to."""

    def __init__(self, file: pathlib.Path) -> None:
        super().__init__()
        self.file, self.anchors, self.links, self.pictures = file, {"", "top"}, [], 0
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")} - {None}
        self.pictures += tag == "img"
        self.links += [found[name] for name in ("href", "src") if found.get(name)]


def broken(page: Page, pages: dict[pathlib.Path, Page]) -> Iterator[str]:
    """The links of a page that lead nowhere, each with the reason."""
    for link in page.links:
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (page.file.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else page.file
        if not target.exists():
            yield f"{page.file.name}: {link} does not exist"
        elif target.is_file() and not target.stat().st_size:
            yield f"{page.file.name}: {link} is empty"
        elif target in pages and urllib.parse.unquote(parts.fragment) not in pages[target].anchors:
            yield f"{page.file.name}: {link}, there is no such heading"


def main() -> int:
    root = pathlib.Path(sys.argv[1]).resolve()
    files = [file for file in sorted(root.rglob("*.html")) if "_static" not in file.parts]
    pages = {file: Page(file) for file in files}
    sentences = [sentence for page in pages.values() for sentence in broken(page, pages)]
    links, pictures = sum(len(p.links) for p in pages.values()), sum(p.pictures for p in pages.values())
    print(
        *sentences,
        f"{len(pages)} pages, {links} links, {pictures} pictures, {len(sentences)} broken",
        sep="\n",
    )
    return bool(sentences or not pictures)


if __name__ == "__main__":
    sys.exit(main())
