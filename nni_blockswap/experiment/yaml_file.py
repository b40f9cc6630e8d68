"""YAML that a person wrote: no key twice, no value that contains itself, and none that is large beyond measure."""

from pathlib import Path
from typing import Any

import yaml

from nni_blockswap.errors import ConfigError

LARGEST = 10_000
"""Values in a file, those that an alias repeats counted as often as they are there."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds. Raises ConfigError where it cannot be read, or holds what nobody means."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            document = loader.get_single_node()
            if document is None:
                return None
            _size(document, {}, path)
            return loader.construct_document(document)
        finally:
            loader.dispose()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config '{path}' cannot be read: {error}.") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that there is not, a number of thousands of digits
        raise ConfigError(f"the config '{path}' is not YAML: {' '.join(str(error).split())}.") from error
    except RecursionError:
        raise ConfigError(f"the config '{path}' is nested too deeply.") from None


def _size(node: yaml.Node, known: dict[int, int | None], path: Path) -> int:
    """Values in ``node``; of those in ``known`` it was counted before, or is (None) being counted."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise ConfigError(f"in the config '{path}' a value contains itself ({_line(node)}); write it out.")
        return size
    known[id(node)] = None
    if isinstance(node, yaml.MappingNode):
        _check_keys(node, path)
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    if isinstance(node, yaml.ScalarNode):
        parts = []
        if "\0" in node.value:
            raise ConfigError(f"in the config '{path}' a text has a NUL ({_line(node)}); remove it.")
    size = 1
    for part in parts:
        size += _size(part, known, path)
        if size > LARGEST:
            raise ConfigError(f"the config '{path}' holds more than {LARGEST:,} values ({_line(node)}).")
    known[id(node)] = size
    return size


def _check_keys(node: yaml.MappingNode, path: Path) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in seen:
                raise ConfigError(f"in the config '{path}' the key '{key.value}' is there twice ({_line(key)}).")
            seen.add((key.tag, key.value))


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"
