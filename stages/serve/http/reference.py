"""The OpenAPI description as a page: FastAPI's own loads its script from elsewhere."""

import json
from html import escape
from typing import Any


def render_reference(spec: dict[str, Any]) -> str:
    """Every route with what it takes and what it answers."""
    parts = []
    for path, methods in spec["paths"].items():
        for method, route in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            parts.append(f"<p>{escape(route.get('description', ''))}</p>")
            if body := route.get("requestBody"):
                schema = next(iter(body["content"].values()))["schema"]
                parts.append(f"<pre>{escape(json.dumps(_resolved(schema, spec), indent=1))}</pre>")
            rows = "".join(
                f"<tr><td>{escape(status)}</td><td>{escape(said['description'])}</td></tr>"
                for status, said in sorted(route["responses"].items())
            )
            parts.append(f"<table>{rows}</table>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>Quarry: routes</title><link rel="stylesheet" href="/page/style.css"></head>'
        '<body><main><h1>Routes</h1><p><a href="/">The page</a> · '
        '<a href="/openapi.json">openapi.json</a></p>' + "".join(parts) + "</main></body></html>"
    )


def _resolved(schema: dict[str, Any], spec: dict[str, Any]) -> Any:
    if "$ref" in schema:
        return spec["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return schema
