"""The JSON schema of a result: what `cltk measure --json` and `cltk compare --json` write."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from cltk.measure.results import FORMAT, Result


def schema() -> dict[str, Any]:
    """JSON schema (2020-12), made of the dataclasses themselves; a number that is not finite is null."""
    made = _nullable(TypeAdapter(Result).json_schema())
    row = made["$defs"]["Row"]
    row["properties"].pop("estimate", None)
    row["required"] = [name for name in row.get("required", []) if name != "estimate"]
    made["$defs"] = {name: one for name, one in made["$defs"].items() if name in ("Row", "Flips")}
    made["properties"].pop("lost")  # texts of documents are shown, not kept
    made["properties"] |= {"format": {"const": FORMAT}, "sha256": {"type": "string"}}
    made["required"] = ["format", *made["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "cltk result", **made}


def _nullable(tree: Any) -> Any:
    if isinstance(tree, dict):
        found = {key: _nullable(value) for key, value in tree.items() if not (key == "default" and value is None)}
        return found | {"type": ["number", "null"]} if found.get("type") == "number" else found
    return [_nullable(one) for one in tree] if isinstance(tree, list) else tree
