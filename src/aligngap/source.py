"""The source of users' own losses, judges and tasks as a hash for keys, and whether this process runs that source.

The hash covers the modules named, each with all of the package it is in, what these import that is source and no
installed distribution, and the files and environment variables that they declare in `reads_files` and
`reads_environment`. Of a file that Python has loaded, it is what was loaded that counts: a step asks before and after
its work whether that still is what its key says.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, lru_cache
from importlib.machinery import ModuleSpec, SourcelessFileLoader
from pathlib import Path
from zipimport import zipimporter

from aligngap.types import AligngapError

INSTALLED = ("site-packages", "dist-packages")  #: folders of installed distributions, whose versions stand for them
FILES, ENVIRONMENT = "reads_files", "reads_environment"  #: what a module or a class of it declares that it reads
PLAIN = 'must be one plain list of names, as {} = ["words.txt"]'

_loaded: dict[Path, tuple[ModuleSpec, bytes]] = {}  #: by file: the load of it that was seen, and its bytes then
_used: dict[str, tuple[Callable[[], str], str]] = {}  #: by words for it: what this process uses, and its hash in keys


def source_hash(modules: Iterable[str]) -> str:
    """The hash of the source of some modules, 20 hex digits; "" if all are aligngap's own or Python's.

    AligngapError where they declare a file that is not there.
    """
    tops = {module.partition(".")[0] for module in modules} - {"aligngap", ""}
    tops = {top for top in tops if not _comes_with_python(top)}
    if not tops:
        return ""
    found, declared, trees = hashlib.sha256(), set[str](), dict[str, list[tuple[Path, str, bytes]]]()
    loads = _loads()
    while more := tops - set(trees):
        for top in more:
            trees[top] = [(file, name, _bytes_of(file, loads)) for file, name in _source_files(top)]
            for file, _, content in trees[top]:
                check_compiled(file)
                named, reads = _read_source(file, content)
                declared |= reads
                tops |= {name for name in named if name not in tops and _is_own(name)}
    for top in sorted(trees):
        for _, name, content in trees[top]:
            found.update(f"{top}/{name}\n".encode() + content + b"\n")
    for line in sorted(declared):
        found.update(f"{line}\n".encode())
    return found.hexdigest()[:20]


def use(what: str, find: Callable[[], str], code: str) -> None:
    """Hold what this process has loaded against the hash in a step's key, now and when the step ends.

    `find` gives the hash as it is; call this once the object is imported. AligngapError if it is another.
    """
    if code:
        _used[what] = find, code
        _check(what)


def check_used() -> None:
    """Hold all that was used against its keys once more: what a step loaded on its way may have changed before."""
    for what in _used:
        _check(what)


def _check(what: str) -> None:
    find, code = _used[what]
    if find() != code:
        raise AligngapError(f"{what}: its source has changed while the command ran; repeat it")


def begin() -> None:
    """Forget what was used, and refuse source that has changed since this process loaded it: it would run the old."""
    _used.clear()
    loads, before = _loads(), dict(_loaded)
    for file, (spec, content) in before.items():
        if loads.get(file) is not spec:  # loaded anew since, or no longer
            if file in loads and file.is_file() and file.read_bytes() != content:
                _check_nobody_holds(file, {f: c for f, (old, c) in before.items() if loads.get(f) is old})
            del _loaded[file]
        elif not file.is_file() or file.read_bytes() != content:
            what = "has changed since this process loaded it, and Python goes on with the old"
            raise AligngapError(f"{file}: {what}; reload it (importlib.reload), or begin a new process")


def _check_nobody_holds(file: Path, loaded: Mapping[Path, bytes]) -> None:
    """Refuse a module that was edited and loaded anew while one that was not imports it, and may hold what it was."""
    package = file.parent if (file.parent / "__init__.py").is_file() else None
    for other, content in loaded.items():
        named, _ = _read_source(other, content)
        if named & {file.stem, file.parent.name} or other.parent == package:
            what = f"{file} was changed and loaded anew, and this module, which imports it, may hold what it was"
            raise AligngapError(f"{other}: {what}; reload it too, or begin a new process")


def _loads() -> dict[Path, ModuleSpec]:
    """The files that this process has loaded modules from, each with the load's own specification."""
    found: dict[Path, ModuleSpec] = {}
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if isinstance(spec, ModuleSpec) and spec.origin and spec.origin.endswith(".py"):
            found[_path(spec.origin)] = spec
    return found


@cache
def _path(origin: str) -> Path:
    """The path of a module's file; kept, since every step asks for those of thousands of modules."""
    return Path(origin)


def _bytes_of(file: Path, loads: dict[Path, ModuleSpec]) -> bytes:
    """A source file as this process has loaded it, or as it lies there if it has not."""
    load, known = loads.get(file), _loaded.get(file)
    if load is None:
        return file.read_bytes()
    if known is None or known[0] is not load:
        known = _loaded[file] = load, file.read_bytes()
    return known[1]


def check_compiled(file: Path) -> None:
    """Refuse a source file in whose place Python would run the compiled form of other source.

    Python takes what lies in `__pycache__` for current where time, to the second, and size of the source are those it
    was compiled at, which an edit may leave as they were, and always where it was compiled with an unchecked hash.
    """
    if file.suffix != ".py" or sys.implementation.cache_tag is None:
        return
    compiled = Path(importlib.util.cache_from_source(str(file)))
    if compiled.is_file():
        stamps = [(at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino) for at in (file.stat(), compiled.stat())]
        if _is_of_other_source(file, compiled, tuple(stamps)):
            what = f"{compiled} is compiled from other source, which Python does not see, and Python runs that"
            raise AligngapError(f"{file}: {what}; remove it, and repeat the command")


@lru_cache(maxsize=4096)
def _is_of_other_source(file: Path, compiled: Path, stamps: tuple[tuple[int, ...], ...]) -> bool:
    """Whether Python would take a compiled form for a source file's own and it is not; `stamps` are those of both."""
    content, (size, at) = compiled.read_bytes(), stamps[0][:2]
    written = b"".join((value & 0xFFFFFFFF).to_bytes(4, "little") for value in (0, at // 10**9, size))
    unasked = int.from_bytes(content[4:8], "little") == 0b01  # by a hash that Python does not hold against the source
    if content[:4] != importlib.util.MAGIC_NUMBER or not (unasked or content[4:16] == written):
        return False  # Python compiles the source anew, or holds a hash of it against it
    try:
        runs = SourcelessFileLoader(file.stem, str(compiled)).get_code(file.stem)
        return bool(runs != compile(file.read_bytes(), str(file), "exec", dont_inherit=True))
    except (SyntaxError, ValueError, EOFError, TypeError, ImportError):  # which importing it says better
        return False


def _read_source(file: Path, content: bytes) -> tuple[set[str], set[str]]:
    """The modules that a source file imports by their first names, and a line for each thing it declares to read."""
    if file.suffix != ".py":
        return set(), set()
    try:
        tree = _parsed(content)
    except (SyntaxError, ValueError):  # which importing it says better
        return set(), set()
    named, declared = set[str](), set[str]()
    for node in ast.walk(tree):
        if (told := _told_otherwise(node)) is not None:
            raise AligngapError(f"{file}: {told} {PLAIN.format(told)}")
        if isinstance(node, ast.Import):
            named |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            named.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name) and target.id in (FILES, ENVIRONMENT):
                    declared |= set(_declared(file, target.id, node.value))
    return named - {"aligngap"}, declared


def _told_otherwise(node: ast.AST) -> str | None:
    """The name of a declaration that a statement changes in a way that is not read: `+=`, a call on it, unpacking."""
    changed: list[ast.expr] = []
    if isinstance(node, ast.AugAssign):
        changed = [node.target]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        changed = [node.func.value]
    elif isinstance(node, ast.Assign):
        changed = [part for target in node.targets if isinstance(target, ast.Tuple | ast.List) for part in target.elts]
    return next((n.id for n in changed if isinstance(n, ast.Name) and n.id in (FILES, ENVIRONMENT)), None)


@cache
def _parsed(content: bytes) -> ast.Module:
    return ast.parse(content)


def _declared(file: Path, name: str, value: ast.expr) -> Iterator[str]:
    """A line for each file, relative to the source, or environment variable that it declares to read."""
    try:
        given = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        given = None
    if not isinstance(given, list | tuple) or not all(isinstance(word, str) for word in given):
        raise AligngapError(f"{file}: {name} {PLAIN.format(name)}")
    for word in given:
        if name == ENVIRONMENT:
            told = os.environ.get(word)
            yield f"{name} {word} " + ("is not set" if told is None else hashlib.sha256(told.encode()).hexdigest())
            continue
        place = file.parent / word
        if not place.exists():
            raise AligngapError(f"{file}: {name} names {word}, which is not there ({place}); put it there, or mend it")
        for part in sorted(p for p in _files_in(place) if p.is_file()) if place.is_dir() else [place]:
            inside = part.relative_to(place).as_posix() if place.is_dir() else ""
            at = part.stat()
            stamp = (at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino)
            yield f"{name} {word} {inside} {_file_hash(part, stamp)}"


@lru_cache(maxsize=4096)
def _file_hash(file: Path, stamp: tuple[int, ...]) -> str:
    """The hash of a file that is asked for at every step, read anew when its stamp says that it has changed."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _files_in(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links to folders too, each folder once."""
    seen = set[str]()
    for inside, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(inside)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(inside) / name for name in sorted(names))


def _spec(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top)
    except (ImportError, ValueError):  # a module that was made in memory
        return None


def _places(spec: ModuleSpec | None) -> list[Path]:
    """The folders of a package, the file of a module that stands alone or the archive that holds it; else []."""
    if spec is None:
        return []
    if isinstance(spec.loader, zipimporter):
        return [Path(spec.loader.archive)]
    if spec.submodule_search_locations:
        return [Path(place) for place in spec.submodule_search_locations]
    return [origin] if (origin := Path(spec.origin or "")).is_file() else []


def _comes_with_python(top: str) -> bool:
    """Whether a name is a module of Python itself, and not one of the user's that hides it."""
    if top not in sys.stdlib_module_names:
        return False
    own = [Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")]
    return all(any(place.is_relative_to(folder) for folder in own) for place in _places(_spec(top)))


def _is_own(top: str) -> bool:
    """Whether what is imported by a name is source that nobody has installed: beside the module, or on PYTHONPATH."""
    places = _places(_spec(top))
    installed = all(set(INSTALLED) & set(place.parts) for place in places)
    return bool(places) and not installed and not _comes_with_python(top)


def _source_files(top: str) -> list[tuple[Path, str]]:
    """The source files of a module or package, each with its name there; of a namespace, no installed part."""
    spec = _spec(top)
    places = _places(spec)
    if spec is None or not spec.submodule_search_locations or isinstance(spec.loader, zipimporter):
        return [(file, file.name) for file in places]
    if spec.origin is None:  # a namespace: several folders, perhaps, of which others' may be installed
        own = [place for place in places if not set(INSTALLED) & set(place.parts)]
        places = own or places
    files = [(f, f.relative_to(place)) for place in places for f in _files_in(place) if f.suffix == ".py"]
    inside = [(file, name) for file, name in files if not any(part.startswith(".") for part in name.parts)]
    return sorted(((file, name.as_posix()) for file, name in inside), key=lambda found: found[1])
