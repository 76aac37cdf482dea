"""`make docs`: writes the reference pages from the docstrings, then checks every page.

The reference (`docs/reference/`) has one page per module that holds a public name, read by griffe without running anything. The check
fails on a link to a file or heading that is not there, on a public name without a docstring, and on a page that speaks of a
`neaptide.name` that does not exist.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import griffe
from markdown_it import MarkdownIt

import neaptide
import neaptide.testing

REPOSITORY = Path(__file__).resolve().parent.parent
REFERENCE = REPOSITORY / "docs" / "reference"
ROOMS = ("compiler", "passes", "targets", "search", "report", "testing")
WIDTH = 100


# ---- the reference ------------------------------------------------------------------------------------------------


def load_package() -> griffe.Module:
    """The whole package, read but not run, under its own name whatever the folder of the checkout is called."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "neaptide"
        package.mkdir()
        for path in (*REPOSITORY.glob("*.py"), *(REPOSITORY / room for room in ROOMS)):
            (package / path.name).symlink_to(path)
        loaded = griffe.load("neaptide", search_paths=[folder], try_relative_path=False)
    assert isinstance(loaded, griffe.Module)
    return loaded


def public_objects(package: griffe.Module, missing: list[str]) -> dict[str, list[griffe.Object]]:
    """What the reference describes, by the module it is defined in; the errors and the testing module are there in full."""
    found = [package[name] for name in neaptide.__all__ if name != "__version__"]
    found += [package["testing"][name] for name in neaptide.testing.__all__]
    found += [m for m in package["compiler.errors"].members.values() if isinstance(m, griffe.Class)]
    homes: dict[str, list[griffe.Object]] = {}
    for member in found:
        try:
            obj = member.final_target if isinstance(member, griffe.Alias) else member
        except griffe.AliasResolutionError as error:
            missing.append(str(error))
            continue
        home = homes.setdefault(obj.module.path, [])
        if obj not in home:
            home.append(obj)
    return dict(sorted(homes.items()))


def signature(function: griffe.Function, name: str) -> str:
    """One line if it fits, else one parameter a line."""
    text = function.signature().removeprefix(function.name)
    if len(name + text) <= WIDTH:
        return name + text
    parts, depth, start = [], 0, 0
    body = text[1 : text.rindex(") ->") if ") ->" in text else -1]
    for i, c in enumerate(body):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append(body[start:i].strip())
            start = i + 1
    parts.append(body[start:].strip())
    return f"{name}(\n" + "".join(f"    {p},\n" for p in parts) + text[1 + len(body) :]


def public_members(cls: griffe.Class) -> Iterator[griffe.Object]:
    for member in cls.members.values():
        if not member.name.startswith("_") and not isinstance(member, griffe.Alias):
            yield member


def entry(obj: griffe.Object, missing: list[str]) -> Iterator[str]:
    """Markdown lines of one public class, function or constant."""
    if obj.docstring is None and not isinstance(obj, griffe.Attribute):
        missing.append(f"{obj.path} has no docstring")
    yield f"## {obj.name}\n"
    text = obj.docstring.value if obj.docstring else ""
    if isinstance(obj, griffe.Function):
        yield f"```python\n{signature(obj, obj.name)}\n```\n\n{text}\n"
    elif isinstance(obj, griffe.Class):
        bases = ", ".join(str(b) for b in obj.bases)
        yield f"```python\nclass {obj.name}{f'({bases})' if bases else ''}\n```\n\n{text}\n"
        members = list(public_members(obj))
        fields = [m for m in members if isinstance(m, griffe.Attribute) and "property" not in m.labels and "instance-attribute" in m.labels]
        if fields:
            yield "| field | type | default |\n| --- | --- | --- |"
            for m in fields:
                cells = (m.name, m.annotation, m.value)
                yield "| " + " | ".join("" if c is None else f"`{c}`".replace("|", "\\|") for c in cells) + " |"
            yield ""
        for m in members:
            if m in fields or m.docstring is None:
                continue
            if isinstance(m, griffe.Function):
                kind = "classmethod " if "classmethod" in m.labels else ""
                yield f"### {obj.name}.{m.name}\n\n```python\n{kind}{signature(m, m.name)}\n```\n\n{m.docstring.value}\n"
            elif isinstance(m, griffe.Attribute):
                of = f": {m.annotation}" if m.annotation else ""
                yield f"### {obj.name}.{m.name}\n\n```python\n{m.name}{of}\n```\n\n{m.docstring.value}\n"
    elif isinstance(obj, griffe.Attribute):
        yield f"```python\n{obj.name} = {obj.value}\n```\n\n{text}\n"


def write_reference(folder: Path) -> list[str]:
    """Write the reference into `folder`; returns what it misses."""
    missing: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    index = ["# Reference\n", "Made by `make docs` from the docstrings. Every name below is in `neaptide` unless its module is given.\n"]
    pages = {"index.md"}
    package = load_package()
    for path, objects in public_objects(package, missing).items():
        docstring = package.modules_collection[path].docstring
        lines = [f"# {path}\n", (docstring.value if docstring else "") + "\n"]
        page = f"{path.removeprefix('neaptide.')}.md"
        index.append(f"\n## [{path}]({page})\n")
        for obj in objects:
            lines.extend(entry(obj, missing))
            summary = obj.docstring.value.split("\n\n")[0].replace("\n", " ") if obj.docstring else ""
            index.append(f"- [`{obj.name}`]({page}#{slug(obj.name)}): {summary}")
        (folder / page).write_text("\n".join(lines).rstrip() + "\n")
        pages.add(page)
    (folder / "index.md").write_text("\n".join(index).rstrip() + "\n")
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    return missing


# ---- the check ----------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def read_page(path: Path) -> tuple[set[str], list[tuple[int, str]], list[tuple[int, str]]]:
    """Anchors, links and inline code of a Markdown file, the last two with their line."""
    anchors: set[str] = set()
    links: list[tuple[int, str]] = []
    codes: list[tuple[int, str]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text())
    line = 1
    for before, token in zip([None, *tokens], tokens, strict=False):
        line = token.map[0] + 1 if token.map else line
        if token.type in ("html_block", "html_inline"):
            links.extend((line, target) for target in re.findall(r'(?:src|href)="([^"]+)"', token.content))
        if token.type != "inline":
            continue
        if before is not None and before.type == "heading_open":
            anchor = plain = slug("".join(c.content for c in token.children or () if c.type in ("text", "code_inline")))
            n = 0
            while anchor in anchors:
                n += 1
                anchor = f"{plain}-{n}"
            anchors.add(anchor)
        for child in token.children or ():
            if child.type == "link_open":
                links.append((line, str(child.attrs["href"])))
            elif child.type == "image":
                links.append((line, str(child.attrs["src"])))
            elif child.type == "html_inline":
                links.extend((line, target) for target in re.findall(r'(?:src|href)="([^"]+)"', child.content))
            elif child.type == "code_inline":
                codes.append((line, child.content))
    return anchors, links, codes


def check_pages(pages: list[Path]) -> list[str]:
    """What is wrong with `pages`: broken links, and names of ours that do not exist."""
    wrong: list[str] = []
    read = {page: read_page(page) for page in pages}
    known = {*neaptide.__all__, *ROOMS, "cli", "analysis", "graph", "egg"}
    for page, (_, links, codes) in read.items():
        place = page.relative_to(REPOSITORY) if page.is_relative_to(REPOSITORY) else page
        for line, link in links:
            if re.match(r"[a-z]+:", link):
                continue
            file, _, anchor = unquote(link).partition("#")
            target = (page.parent / file).resolve() if file else page
            if not target.exists():
                wrong.append(f"{place}:{line}: {link} leads to no file")
            elif anchor and target.suffix == ".md":
                read_target = read[target] if target in read else read_page(target)
                if anchor not in read_target[0]:
                    wrong.append(f"{place}:{line}: {link} leads to no heading")
        for line, code in codes:
            wrong.extend(
                f"{place}:{line}: `{code}`: neaptide has no {name}"
                for name in re.findall(r"(?<![\w./-])neaptide\.([a-zA-Z_]\w*)", code)
                if name not in known
            )
    return wrong


def main() -> int:
    wrong = write_reference(REFERENCE)
    pages = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
    wrong += check_pages(pages)
    for line in wrong:
        print(line, file=sys.stderr)
    print(f"{len(pages)} pages, {len(list(REFERENCE.glob('*.md')))} of them reference: {len(wrong)} problem(s)")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
