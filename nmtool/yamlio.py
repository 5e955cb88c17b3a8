"""YAML with line numbers: every error names file:line:column, what was found and what is allowed.

Files are YAML 1.2 (``1e-3`` is a number). Duplicate keys, tags and anchors are errors: a config
says each thing once, and a file from somebody else can neither run code nor expand without end.
"""

from __future__ import annotations

import copy
import difflib
import re
import stat
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from nmtool.errors import ConfigError

MAX_BYTES = 100_000
"""Of a config file: some seconds of parsing."""
MAX_DEPTH = 50
MAX_PROBLEMS = 50
MAX_SHOWN = 200
MAX_SECONDS = 1e7
Model = TypeVar("Model", bound=BaseModel)
Path_ = tuple[str | int, ...]
Fraction = Annotated[float, Field(ge=0, le=1)]

DURATION = r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)\s*"
_TAGS = ("kind", "name")
"""Keys that say which member of a union a mapping is."""
_DIRECTIVE = re.compile(r"\ufeff?(?:[ \t]*(?:#[^\n]*)?\r?\n)*%")
_TAG = re.compile(r"!\S*")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class Strict(BaseModel):
    """A frozen config section: unknown keys are errors, numbers are not made from strings."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def parse_duration(text: object) -> float:
    """Seconds of a duration with a unit: ``"500ms"``, ``"60s"``, ``"2m"``, ``"1h"``.

    Raises:
        ValueError: no unit, or not a duration.
    """
    match = re.fullmatch(DURATION, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError("a duration with its unit, such as 500ms, 60s, 2m or 1h")
    seconds = float(match[1]) * _SECONDS[match[2]]
    if seconds > MAX_SECONDS:
        raise ValueError(f"a duration of at most {MAX_SECONDS:.0f}s")
    return seconds


@dataclass
class Document:
    """A YAML file as plain values, with the position of every key and value.

    Attributes:
        overridden: the keys that overrides have set.
        wrong_overrides: problems of their values, which are in no line of the file.
    """

    path: str
    data: Any = None
    marks: dict[Path_, tuple[int, int]] = field(default_factory=dict)
    problems: list[tuple[tuple[int, int], str]] = field(default_factory=list)
    overridden: list[Path_] = field(default_factory=list)
    wrong_overrides: list[str] = field(default_factory=list)

    def blame(self, location: Sequence[str | int], text: str) -> None:
        """Note a problem of a value: of the file, or of the override that it came from."""
        if any(tuple(location[: len(key)]) == key for key in self.overridden):
            self.wrong_overrides.append(f"{self.path} with -s {text}")
        else:
            self.problems.append((self.where(location), text))

    def where(self, location: Sequence[str | int]) -> tuple[int, int]:
        """Line and column (from 1) of the deepest part of ``location`` that is in the file."""
        for end in range(len(location), -1, -1):
            if tuple(location[:end]) in self.marks:
                return self.marks[tuple(location[:end])]
        return (1, 1)

    def fail(self) -> None:
        """Raise all problems at once, in the order of the file."""
        if self.problems or self.wrong_overrides:
            found = sorted(self.problems)
            lines = self.wrong_overrides[:MAX_PROBLEMS]
            lines += [f"{self.path}:{r}:{c}: {text}" for (r, c), text in found[:MAX_PROBLEMS]]
            if more := found[MAX_PROBLEMS:]:
                lines.append(f"{self.path}:{more[0][0][0]}:1: and {len(more)} problems more")
            raise ConfigError("\n".join(lines))


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: no such file, no file, not readable, not UTF-8, or larger than MAX_BYTES.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise ConfigError(f"{path}: found a device, allowed a file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(f"{path}: found more than {MAX_BYTES} bytes, allowed {MAX_BYTES}")
        return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: found bytes that are not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ConfigError:
        raise
    except ValueError as error:  # a null byte in the name
        raise ConfigError(f"{str(path)!r}: cannot be read ({error})") from None


class _Composer(Composer):
    """Composes nodes down to ``MAX_DEPTH`` levels."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise YAMLError(f"found more than {MAX_DEPTH} levels, allowed {MAX_DEPTH}")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


def parse(text: str, path: str) -> Document:
    """Parse YAML text into a Document; problems of form are raised as one ConfigError."""
    return copy.deepcopy(_parsed(text, path))


@lru_cache(maxsize=32)  # one command looks at the file of a chip several times
def _parsed(text: str, path: str) -> Document:
    document = Document(path)
    if directive := _DIRECTIVE.match(text):
        row = text.count("\n", 0, directive.end()) + 1
        document.problems.append(((row, 1), "found a directive (%), allowed none"))
        document.fail()
    yaml = YAML(typ="safe", pure=True)
    yaml.Composer = _Composer
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor twice; that is an error here
            node = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        problem = error.problem or error.context or "not YAML"
        document.problems.append((at, f"not valid YAML: {problem}"))
        document.fail()
    except (YAMLError, ValueError, RecursionError) as error:
        document.problems.append(((1, 1), f"not valid YAML: {str(error).splitlines()[0]}"))
        document.fail()
    if node is None:
        document.problems.append(((1, 1), "found an empty file, allowed a mapping"))
        document.fail()
    document.data = _convert(node, (), document, yaml, set())
    document.fail()
    return document


def _at(node: Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _convert(node: Node, where: Path_, doc: Document, yaml: YAML, seen: set[int]) -> Any:
    doc.marks.setdefault(where, _at(node))
    if not _is_plain(node, doc, seen):
        return None
    if isinstance(node, ScalarNode):
        return _scalar(node, doc, yaml)
    if isinstance(node, SequenceNode):
        return [_convert(n, (*where, i), doc, yaml, seen) for i, n in enumerate(node.value)]
    assert isinstance(node, MappingNode)
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, ScalarNode) else None
        if not _is_plain(key_node, doc, seen):
            continue
        if not isinstance(key, str):
            doc.problems.append((_at(key_node), "found a key that is not a word, allowed words"))
            continue
        if key in result:
            first = doc.marks[(*where, key)][0]
            doc.problems.append((_at(key_node), f"{key}: found twice, first in line {first}"))
            continue
        doc.marks[(*where, key)] = _at(key_node)
        result[key] = _convert(value_node, (*where, key), doc, yaml, seen)
    return result


def _is_plain(node: Node, doc: Document, seen: set[int]) -> bool:
    """Whether a node has no anchor, no tag and is no alias; if not, that is a problem."""
    if id(node) in seen or node.anchor is not None:
        doc.problems.append((_at(node), "found an anchor or alias, allowed plain values"))
        return False
    seen.add(id(node))
    if tag := _TAG.match(node.start_mark.buffer, node.start_mark.pointer):
        doc.problems.append((_at(node), f"found the tag {tag[0]}, allowed no tags"))
        return False
    return True


def _short(value: Any) -> str:
    """A value as a message shows it."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        return "a huge number"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _scalar(node: ScalarNode, doc: Document, yaml: YAML) -> Any:
    known = {"str", "int", "float", "bool", "null"}
    prefix, _, kind = str(node.tag).rpartition(":")
    if prefix != "tag:yaml.org,2002" or kind not in known:
        if kind == "timestamp":
            return node.value
        doc.problems.append((_at(node), f"found the tag {node.tag}, allowed no tags"))
        return None
    try:
        return yaml.constructor.construct_object(node)
    except (ValueError, YAMLError):
        doc.problems.append((_at(node), f"found {_short(node.value)}, allowed a value of {kind}"))
        return None


def load(path: str | Path, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Read a YAML file into a pydantic model, all errors at once.

    ``overrides`` are ``key.path=value`` strings whose values are YAML scalars or flow
    collections; they replace or add single values before validation.

    Raises:
        ConfigError: every problem on a line of its own, as file:line:column.
    """
    return validate(read(Path(path), overrides), model)


def read(path: Path, overrides: Sequence[str] = ()) -> Document:
    """Parse a YAML file and apply overrides, without validating it.

    Raises:
        ConfigError: missing, not YAML, or an override that does not fit.
    """
    document = parse(read_text(path), str(path))
    for override in overrides:
        apply_override(document, override)
    return document


def apply_override(document: Document, override: str) -> None:
    """Set one value of a document from ``key.path=value``.

    Raises:
        ConfigError: not of that form, or the path leads through something that is no mapping.
    """
    key, equals, text = override.partition("=")
    parts = tuple(key.strip().split("."))
    if not equals or not all(parts):
        raise ConfigError(f"-s {override}: found no key=value, allowed such as train.epochs=3")
    value = parse(f"value: {text}", f"-s {key}").data["value"]
    target = document.data
    for part in parts[:-1]:
        target = target.setdefault(part, {}) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"-s {override}: {'.'.join(parts[:-1])} is not a mapping")
    target[parts[-1]] = value
    document.overridden.append(parts)
    for mark in [m for m in document.marks if m[: len(parts)] == parts]:
        del document.marks[mark]


def located(error: Exception, document: Document, section: Path_) -> ConfigError:
    """An error about a section with file:line:column, that of the key that its message names."""
    key = str(error).partition(":")[0].split(".")
    where = tuple(int(part) if part.isdigit() else part for part in key)
    inside = len(where) > len(section) and where[: len(section)] == section
    row, column = document.where(where if inside else section)
    return ConfigError(f"{document.path}:{row}:{column}: {error}")


def validate(document: Document, model: type[Model]) -> Model:
    """Validate a document against a pydantic model; unknown keys get the nearest match."""
    if not isinstance(document.data, Mapping):
        document.problems.append((document.where(()), "found no mapping, allowed keys and values"))
        document.fail()
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        for location, text in _problems(error, model, document):
            document.blame(location, text)
        document.fail()
        raise AssertionError("a validation error without a problem") from error


def _problems(
    error: ValidationError, model: type[BaseModel], document: Document
) -> Iterator[tuple[Path_, str]]:
    """Every problem with its place; a value that may be of several kinds is one problem."""
    several: dict[tuple[Path_, str], list[tuple[str, str]]] = {}
    for item in error.errors(include_url=False):
        location = _in_document(_at_tag(item), document.data)
        if item["type"] == "missing" and location[-1:] != item["loc"][-1:]:
            location = (*location, item["loc"][-1])  # in a value that stands for a mapping
        found, allowed, hint = _describe(item, location, model, document)
        several.setdefault((location, found), []).append((allowed, hint))
    for (location, found), kinds in several.items():
        allowed = " or ".join(dict.fromkeys(allowed for allowed, _ in kinds))
        hint = next((hint for _, hint in kinds if hint), "")
        yield location, f"{found}, allowed {allowed}{hint}"


def _at_tag(item: ErrorDetails) -> Path_:
    """Where a problem is; that of a tagged union is at its tag, such as ``kind``."""
    discriminator = item.get("ctx", {}).get("discriminator")
    return (*item["loc"], *([discriminator.strip("'")] if discriminator else []))


def _in_document(location: Sequence[str | int], data: Any) -> Path_:
    """Pydantic puts the names of union members into locations; keep what the file has."""
    result: list[str | int] = []
    for index, part in enumerate(location):
        if isinstance(data, Mapping) and (part in data or index == len(location) - 1):
            data = data.get(part)
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        result.append(part)
    return tuple(result)


def _describe(
    item: ErrorDetails, location: Path_, model: type[BaseModel], document: Document
) -> tuple[str, str, str]:
    """What was found where, what is allowed, and the nearest match."""
    name = ".".join(str(part) for part in location) or "the file"
    kind = item["type"]
    if kind == "extra_forbidden":
        allowed = sorted(_siblings(model, location, document.data))
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{name}: found an unknown key", ", ".join(allowed), hint
    if kind == "union_tag_invalid":
        tag, expected = item["ctx"]["tag"], item["ctx"]["expected_tags"]
        return f"{name}: found {tag!r}", str(expected), _close_literal(expected, tag)
    if kind in ("missing", "union_tag_not_found"):
        return f"{name}: found nothing", "a value (the key is required)", ""
    if location[-1:] == ("value",) and location not in document.marks:  # added to a plain number
        name = name.removesuffix(".value")
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind in ("model_type", "model_attributes_type"):
        message = "a mapping of keys and values"
    found = item["input"]
    shown = (
        _short(found)
        if isinstance(found, str | int | float | bool | None)
        else "a " + ("mapping" if isinstance(found, Mapping) else "list")
    )
    expected = item.get("ctx", {}).get("expected", "") if kind == "literal_error" else ""
    return f"{name}: found {shown}", message, _close_literal(expected, found)


def _close_literal(expected: str, found: Any) -> str:
    if not isinstance(found, str):
        return ""
    known = re.findall(r"'([^']+)'", expected)
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _siblings(model: type[BaseModel], location: Path_, data: Any) -> set[str]:
    """The keys that the mapping at ``location[:-1]`` may have."""
    current: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        if isinstance(part, str) and all(part in m.model_fields for m in _tagged(current, data)):
            current = [
                inner
                for outer in _tagged(current, data)
                for inner in _models_in(outer.model_fields[part].annotation)
            ]
        data = data.get(part) if isinstance(data, Mapping) else data[part]
    return {
        (info.alias or name)
        for candidate in _tagged(current, data)
        for name, info in candidate.model_fields.items()
    }


def _tagged(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    """The members of a union that a mapping's tag names, or that need no tag; else all of them."""
    if not isinstance(data, Mapping):
        return models
    named = [m for m in models if any(data.get(t) in _literals(m, t) for t in _TAGS)]
    fields = [(m, m.model_fields.get(t)) for m in models for t in _TAGS]
    return named or [m for m, tag in fields if tag and not tag.is_required()] or models


def _literals(model: type[BaseModel], tag: str) -> tuple[Any, ...]:
    return get_args(model.model_fields[tag].annotation) if tag in model.model_fields else ()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for arg in get_args(annotation) for found in _models_in(arg)]
