"""Takes the README's terminal picture: runs the command line for real and saves what it prints as SVG.

python docs/picture.py            # writes docs/images/terminal.svg
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

WIDTH = 104
WORDS = ["analyze", "darts_cifar"]
FONTS = "Menlo, Consolas, 'DejaVu Sans Mono', monospace"  # of the reader's machine: the picture fetches nothing
THEME = TerminalTheme(
    (13, 17, 23),
    (222, 228, 236),
    [(13, 17, 23), (248, 113, 113), (74, 210, 138), (232, 185, 62), (110, 163, 247), (190, 140, 255), (92, 190, 214), (222, 228, 236)],
    [(125, 137, 155), (255, 123, 114), (86, 224, 152), (250, 204, 92), (130, 180, 255), (205, 160, 255), (110, 205, 228), (255, 255, 255)],
)


def main(target: str = "docs/images/terminal.svg") -> int:
    root = Path(__file__).resolve().parent.parent
    environment = {**os.environ, "FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": str(WIDTH)}
    program = "import sys; from neaptide.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", program, *WORDS], cwd=root, env=environment, capture_output=True, text=True, check=True)
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text.assemble(("$ ", "bright_black"), ("neaptide " + " ".join(WORDS), "bold")))
    console.print(Text.from_ansi(done.stdout.rstrip("\n")))
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    svg = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="neaptide", theme=THEME), flags=re.DOTALL)
    (root / target).write_text(svg.replace("Fira Code, monospace", FONTS), encoding="utf-8")
    print(f"wrote {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
