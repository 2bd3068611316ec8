"""What tests read of the documentation; `python -m tests.helpers.docs` copies examples into it."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "finetune").glob("*.md")),
]
EXAMPLE = re.compile(r"<!-- begin (\S+) -->\n(.*?)<!-- end \1 -->", flags=re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml"}


def shell_lines(text: str) -> Iterator[str]:
    """Commands in fenced shell blocks; a backslash at the end of a line joins it to the next."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line.strip()


def with_examples(page: str) -> str:
    """`page` with the present text of each file between its markers."""

    def block(match: re.Match[str]) -> str:
        file = ROOT / match[1]
        code = file.read_text(encoding="utf-8")
        fenced = f"```{LANGUAGES[file.suffix]}\n{code}```\n"
        return f"<!-- begin {match[1]} -->\n{fenced}<!-- end {match[1]} -->"

    return EXAMPLE.sub(block, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(with_examples(path.read_text(encoding="utf-8")), encoding="utf-8")
