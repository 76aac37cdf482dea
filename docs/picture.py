"""Takes the README's terminal picture: runs the command line for real and saves what it prints as SVG.

python docs/picture.py            # writes docs/images/terminal.svg
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
IMAGES = Path("docs") / "images"
WIDTH = 104
WORDS = ["analyze", "darts_cifar"]
FONTS = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"  # of the reader's machine: the picture fetches nothing
THEME = TerminalTheme(
    (13, 17, 23),
    (222, 228, 236),
    [(13, 17, 23), (248, 113, 113), (74, 210, 138), (232, 185, 62), (110, 163, 247), (190, 140, 255), (92, 190, 214), (222, 228, 236)],
    [(125, 137, 155), (255, 123, 114), (86, 224, 152), (250, 204, 92), (130, 180, 255), (205, 160, 255), (110, 205, 228), (255, 255, 255)],
)


def main() -> int:
    (ROOT / IMAGES).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        printed = run(page)
        picture_of_terminal(printed, ROOT / IMAGES / "terminal.svg")
        picture_of_page(page, ROOT / IMAGES / "report.png")
    return 0


def run(page: Path) -> str:
    """What `neaptide` prints in colour; the report goes to `page`."""
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    program = "import sys; from neaptide.cli import main; sys.exit(main())"
    words = [sys.executable, "-c", program, *WORDS, "--html", str(page)]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout


def picture_of_terminal(printed: str, target: Path) -> None:
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bright_black"), ("neaptide " + " ".join(WORDS), "bold")))
    console.print(Text.from_ansi(printed.rstrip("\n")))
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="neaptide", theme=THEME), flags=re.DOTALL)
    target.write_text(svg.replace("Fira Code, monospace", FONTS), encoding="utf-8")
    print(f"wrote {target}")


def picture_of_page(page: Path, target: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print(f"no Chromium here: {target} stays as it is")
        return
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1280,1270",
        "--virtual-time-budget=3000",
    ]
    subprocess.run([browser, *flags, f"--screenshot={target}", page.as_uri()], check=True, capture_output=True)
    print(f"wrote {target}")


if __name__ == "__main__":
    sys.exit(main())
