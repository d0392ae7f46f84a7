"""The rules of docs/design.md section 2 that a machine can check, checked on the syntax tree of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.stages import STAGES

PACKAGE = Path(__file__).parent.parent / "fledge"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Which packages each package may import, besides itself.
MAY_IMPORT = {
    "core": set(),
    "corpus": {"core"},
    "tokens": {"core", "corpus"},
    "model": {"core", "corpus", "tokens"},
    "training": {"core", "corpus", "tokens", "model"},
    "inference": {"core", "corpus", "tokens", "model"},
    "evaluation": {"core", "corpus", "tokens", "model", "inference"},
    "publish": {"core", "corpus", "tokens", "model", "training", "inference", "evaluation"},
    "serving": {"core", "corpus", "tokens", "model", "inference", "evaluation"},
}
NO_TORCH = {"core", "corpus", "tokens"}
# Where an import of a heavy or delicate module may stand; a package name allows the whole package.
ONLY_IN = {
    "torch.distributed": {"training/parallel.py", "training/layout.py", "verbs/launching.py", "verbs/rendezvous.py"},
    "wandb": {"core/metrics.py"},
    "tensorboard": {"core/metrics.py"},
    "yaml": {"core/config.py"},
    "jinja2": set(),
    "tokenizers": {
        "tokens/engines/reference.py",
        "tokens/engines/byte_pairs.py",
        "tokens/engines/choice.py",
        "tokens/engines/kernel.py",
        "tokens/definition.py",
        "tokens/folder.py",
        "tokens/foreign.py",
        "tokens/importing.py",
        "tokens/levels.py",
        "tokens/superbpe.py",
        "tokens/tokenizer.py",
        "tokens/trainers.py",
        "publish/gguf_export.py",
    },
    "tiktoken": {"tokens/engines/byte_pairs.py"},
    "gigatoken": {"tokens/engines/byte_pairs.py"},
    "awkward": {"tokens/engines/byte_pairs.py"},
    "sentencepiece": {"tokens/sentencepiece_models.py"},
    "safetensors": {"model/tensors.py"},
    "transformers": {"publish/checks.py"},
    "gguf": {"publish/gguf_file.py"},
    "peft": set(),
    "huggingface_hub": {
        "corpus/sources/hub.py",
        "corpus/sources/transport.py",
        "tokens/importing.py",
        "publish/hub.py",
        "publish/importing.py",
    },
    "lm_eval": {"evaluation/harness.py"},
    "datasets": set(),
    "uvicorn": {"serving/protocol.py", "serving/run.py"},
    "prometheus_client": {"serving/metrics.py"},
    "openai": set(),
    "playwright": set(),
    "pickle": set(),
    "shelve": set(),
    "marshal": set(),
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
WRITES = {"write_text", "write_bytes", "mkdir", "rmdir", "unlink", "rename", "replace", "touch", "symlink_to", "hardlink_to", "chmod"}
FILE_MODULES = {
    "os": {"replace", "rename", "remove", "makedirs", "mkdir", "unlink", "rmdir", "truncate"},
    "shutil": {"move", "rmtree", "copy", "copytree", "copyfile"},
}
SLOW = ["torch", "numba", "transformers"]
"""Seconds each: not for looking at what is finished."""
LIGHT = ["torch", "sentencepiece", "numba", "pyarrow", "transformers", "peft", "tokenizers", "numpy"]


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_imports_only_point_down(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        room = room_of(path)
        allowed = {room} | MAY_IMPORT[room] if room in MAY_IMPORT else None
        for name, line in imports(tree):
            parts = name.split(".")
            if parts[0] != "fledge" or len(parts) < 2 or allowed is None or parts[1] == "__version__":
                continue
            if parts[1] not in allowed:
                wrong.append(f"{name_of(path)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("module", ["recipe", "smoke"])
def test_recipe_imports_only_settings(trees: dict[Path, ast.Module], module: str) -> None:
    names = [name for name, _ in imports(trees[PACKAGE / f"{module}.py"]) if name.startswith("fledge.")]
    assert names
    assert all(name.split(".")[1] in {"core", "recipe"} or "settings" in name.split(".") for name in names), names


def test_no_module_imports_in_a_circle(trees: dict[Path, ast.Module]) -> None:
    known = {".".join(("fledge", *path.relative_to(PACKAGE).with_suffix("").parts)): path for path in MODULES}
    edges: dict[str, set[str]] = {}
    for module, path in known.items():
        targets = {candidate for name, _ in imports(trees[path]) for candidate in (name, name.rpartition(".")[0])}
        edges[module] = {target for target in targets if target in known and target != module}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in edges[module]:
                visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_delicate_modules_have_one_home(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        for name, line in imports(tree):
            homes = next((homes for module, homes in ONLY_IN.items() if name == module or name.startswith(f"{module}.")), None)
            if homes is not None and name_of(path) not in homes:
                wrong.append(f"{name_of(path)}:{line} imports {name}")
            if name.split(".")[0] == "torch" and room_of(path) in NO_TORCH:
                wrong.append(f"{name_of(path)}:{line} imports torch")
    assert not wrong, "\n".join(wrong)


def test_only_disk_changes_the_disk(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        if name_of(path) == "core/disk.py":
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            function = node.func
            called = function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "mode")]
            modes = [argument.value for argument in given if isinstance(argument, ast.Constant) and isinstance(argument.value, str)]
            opens_to_write = called == "open" and any(set(mode) <= set("rwxab+t") and set(mode) & set("wxa+") for mode in modes)
            on_disk_module = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "disk"
            string_method = called == "replace" and len(node.args) == 2
            dataclass_replace = called == "replace" and bool(node.keywords)
            changes = called in WRITES and isinstance(function, ast.Attribute) and not on_disk_module
            module = function.value.id if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) else ""
            by_module = called in FILE_MODULES.get(module, set())
            if opens_to_write or by_module or (changes and not string_method and not dataclass_replace):
                wrong.append(f"{name_of(path)}:{node.lineno} calls {called}")
    assert not wrong, "\n".join(wrong)


def test_no_dynamic_code(trees: dict[Path, ast.Module]) -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno} calls {node.func.id}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def test_a_pickle_is_opened_in_one_place_without_its_code(trees: dict[Path, ast.Module]) -> None:
    found = [
        (name_of(path), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords})
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert [(name, options.get("weights_only")) for name, options in found] == [("publish/unpickling.py", "True")]


def test_rank_is_read_in_one_place(trees: dict[Path, ast.Module]) -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if name_of(path) != "core/process.py"
        and isinstance(node, ast.Constant)
        and node.value in {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    ]
    assert not wrong, "\n".join(wrong)


def defines(statement: ast.Expr) -> bool:
    """Whether a call belongs to a definition: torch has no other way to tell the gradient of an operator."""
    call = statement.value
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "register_autograd"


def test_nothing_happens_at_import(trees: dict[Path, ast.Module]) -> None:
    """Module level holds definitions and values only: no bare call, no loop, no file opened."""
    allowed = (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.TypeAlias
    ) if sys.version_info >= (3, 12) else (
        ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If
    )  # fmt: skip
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path, tree in trees.items()
        for node in tree.body
        if not isinstance(node, allowed) and not (isinstance(node, ast.Expr) and (isinstance(node.value, ast.Constant) or defines(node)))
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_stay_short(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > 400:
            wrong.append(f"{name_of(path)} has {lines} lines")
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 60:
                    wrong.append(f"{name_of(path)}:{node.lineno} {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def test_every_module_says_its_place(trees: dict[Path, ast.Module]) -> None:
    wrong = [name_of(path) for path, tree in trees.items() if not ast.get_docstring(tree)]
    assert not wrong, wrong


def test_the_command_line_loads_nothing_heavy() -> None:
    code = f"import sys, fledge.cli, fledge.recipe; print([name for name in {LIGHT!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"


def test_what_a_finished_run_needs_loads_no_torch() -> None:
    """Every stage, and the last lines of a run: what makes a result is loaded by the stage that has one to make."""
    names = [*(f"fledge.stages.{stage}" for stage in STAGES), "fledge.verbs.closing"]
    code = f"import sys, {', '.join(names)}; print([name for name in {SLOW!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert loaded == "[]"
