"""The house stays in order: imports run one way, and heavy packages come in by one door."""

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ROOMS = {  # room: the rooms that it may import, besides itself
    "kernels": set(),
    "asr": {"kernels"},
    "adapters": {"asr"},
    "streaming": {"asr"},
    "server": {"streaming", "asr"},
    "eval": {"streaming", "asr"},
}
FRONT_DOOR = "asr_stream"  # may import every room, and no room imports it

DOORS = {  # package: the only files that may import it
    "peft": {"adapters/lora.py"},
    "whisper": {"asr/checkpoint.py", "eval/baselines.py"},
}
# parts of openai-whisper that hold no weights: anybody's
OPEN_PARTS = {"whisper.audio", "whisper.normalizers", "whisper.tokenizer"}


def sources(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The dotted names of every module that the file imports, at its top or anywhere within."""
    return names(ast.walk(parse(path)))


def imports_at_once(path: Path) -> Iterator[str]:
    """Of these, the ones that importing the file imports."""
    return names(parse(path).body)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & OPEN_PARTS or {node.module}


def top(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    forbidden = {*ROOMS, FRONT_DOOR, "tests"} - ROOMS[room] - {room}
    assert sources(room)
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(room)
        for name in imports(path)
        if top(name) in forbidden
    ]


@pytest.mark.parametrize("package", DOORS)
def test_heavy_packages_come_in_by_one_door(package: str) -> None:
    elsewhere = [
        path for room in ROOMS for path in sources(room) if str(path.relative_to(ROOT)) not in DOORS[package]
    ]
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in elsewhere
        for name in imports(path)
        if top(name) == package and name not in OPEN_PARTS
    ]


def test_dialects_know_no_model_and_no_event_loop() -> None:
    assert not [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("server/dialects")
        for name in imports(path)
        if top(name) in {"asyncio", "starlette", "torch", "websockets"}
    ]


def test_front_door_opens_without_the_rooms() -> None:
    heavy = {*ROOMS, "peft", "torch", "whisper"}
    assert not [name for name in imports_at_once(ROOT / f"{FRONT_DOOR}.py") if top(name) in heavy]


def run_python(code: str) -> str:
    """What `code` writes, in a fresh interpreter at the root of the project."""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_rooms_imports_no_triton() -> None:
    rooms = ", ".join([*ROOMS, "server.dialects"])
    assert run_python(f"import sys, {rooms}; print('triton' in sys.modules)").strip() == "False"


def test_peft_works_beside_rooms_with_common_names() -> None:
    """peft and transformers look for packages named `kernels` and `adapters`: finding ours must not harm."""
    assert run_python("import peft; print(peft.LoraConfig.__name__)").strip() == "LoraConfig"


def test_a_server_does_not_load_torch() -> None:
    """Engines do, in processes of their own; here it would be 0.27 GB for nothing."""
    program = (
        "import sys, server.app, server.engine_process, server.serve_command, streaming.pool\n"
        "from asr_stream import look_around\n"
        "if __name__ == '__main__':\n"
        "    assert look_around('cpu')[0] == 'cpu'\n"
        "    sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=120)
