"""YAML 1.2 as plans are written in it.

Knows: reading without anchors, writing with remarks at the ends of lines, changing values while comments stay.
Does not know: what a plan is (plan.py).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftsmith import files
from peftsmith.errors import PeftsmithError


def read(text: str, name: str) -> dict[str, Any]:
    """The mapping that a text holds, which comes from a file called `name`; PeftsmithError for any other text."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.tokens import AliasToken, AnchorToken

    yaml = YAML(typ="safe", pure=True)
    try:
        if any(isinstance(token, (AliasToken, AnchorToken)) for token in yaml.scan(text)):
            raise PeftsmithError("A plan may not use YAML anchors", value=name, next_step="Write the values out.")
        document = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise PeftsmithError(f"{Path(name).name} is not valid YAML: {error}", next_step="Correct the line.") from error
    if not isinstance(document, dict):
        raise PeftsmithError(f"{Path(name).name} does not hold a plan", next_step="Write the plan with plan_finetune.")
    return document


def written(document: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """YAML; `comments` maps dotted fields to remarks."""
    from ruamel.yaml.comments import CommentedMap

    def commented(value: Mapping[str, Any], prefix: str) -> CommentedMap:
        result = CommentedMap()
        for key, item in value.items():
            dotted = f"{prefix}{key}"
            result[key] = commented(item, dotted + ".") if isinstance(item, Mapping) else item
            if dotted in comments:
                result.yaml_add_eol_comment(" ".join(files.clean(comments[dotted], 200).split()), key)
        return result

    return _emit(commented(document, ""))


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """`text` with dotted fields set to new values and every comment kept."""
    tree = _yaml().load(text)
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[key] = value
    return _emit(tree)


def _yaml() -> Any:
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.width = 4096
    yaml.preserve_quotes = True
    return yaml


def _emit(tree: Any) -> str:
    stream = io.StringIO()
    _yaml().dump(tree, stream)
    return stream.getvalue()
