"""Adds the table of all config fields to fields.md, from the source of configs/common.py."""

import pathlib
import re

SOURCE = pathlib.Path(__file__).parent.parent / "configs" / "common.py"


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Called by mkdocs for each page."""
    if page.file.src_uri != "fields.md":
        return markdown
    rows, comment = ["| field | default | meaning |", "|---|---|---|"], []
    for line in SOURCE.read_text().splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
            continue
        field = re.fullmatch(r"config\.([\w.]+) = (.*?)(?:  # (.*))?", line)
        if field and "ConfigDict()" not in field[2]:
            text = " ".join([*comment, field[3] or ""]).strip().replace("|", r"\|")
            rows.append(f"| `{field[1]}` | `{field[2]}` | {text} |")
        comment = []
    return f"{markdown}\n" + "\n".join(rows) + "\n"
