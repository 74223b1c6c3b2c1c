"""Small files of several trace formats, for the tests of the importers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

MOONCAKE = '{"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [0, 1]}\n'
RAGPULSE = {
    "timestamp": "82",
    "input_length": 31,
    "output_length": 2,
    "hash_ids": {"sys_prompt": [1], "passages_ids": [2, 3], "history": [], "web_search": [], "user_input": [9]},
    "session_id": "a",
}
AGENTIC = {
    "id": "s",
    "models": ["m"],
    "block_size": 64,
    "hash_id_scope": "local",
    "tool_tokens": 1,
    "system_tokens": 1,
    "requests": [{"t": 0.0, "type": "n", "model": "m", "in": 9, "out": 3, "hash_ids": [1]}],
    "totals": {},
}
POOL = {
    "data/x/pool/chunk-0-trace.csv": "0,0.1,1.5,Gamma,0.44,3\n",
    "data/x/pool/chunk-0-dataset.json": json.dumps(
        {"0": {"input_tokens": "{5: 0.5, 7: 0.5}", "output_tokens": "{3: 1.0}"}}
    ),
}


def packed(path: Path, files: dict[str, str]) -> Path:
    """A tar of these files, compressed when its name says so."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))
    return path


EXAMPLES: dict[str, Callable[[Path], Path]] = {
    "mooncake": lambda folder: text_file(folder / "m.jsonl", MOONCAKE),
    "ragpulse": lambda folder: text_file(folder / "r.jsonl", json.dumps(RAGPULSE)),
    "agentic-coding": lambda folder: text_file(folder / "a.json", json.dumps(AGENTIC)),
    "servegen": lambda folder: packed(folder / "s.tar.gz", POOL),
}


def text_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
