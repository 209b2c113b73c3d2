"""Pages from the templates beside this file: escaped, alone in one file, without script."""

import json
from collections.abc import Mapping
from importlib.resources import files as package_files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from jaxalign.files import published
from jaxalign.reporting.escaping import visible
from jaxalign.reporting.gain_files import interval_text, number_text, p_text
from jaxalign.reporting.tables import cells_text, language_title, percent, signed


def page(template: str, **values: Any) -> str:
    """The text of a page; whatever is not Markup is escaped on its way into it, and names no place on this machine."""
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if hasattr(value, "__html__") else visible(published(str(value))),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "signed": signed,
        "title": language_title,
        "cells": cells_text,
        "p": p_text,
        "interval": interval_text,
        "number": number_text,
        "pretty": pretty,
    }
    return environment.get_template(template).render(**values)


def template_text(name: str) -> str:
    """A template's source, in an installed wheel too."""
    return package_files("jaxalign.reporting").joinpath(name).read_text(encoding="utf-8")


def pretty(document: Any) -> str:
    """A JSON document, indented, native script as it is."""
    return json.dumps(document, ensure_ascii=False, indent=2)


def versions_table(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Package versions of every stage: {"stages": names, "packages": package -> a version per stage}."""
    packages = sorted({package for stage in stages.values() for package in stage})
    return {
        "stages": list(stages),
        "packages": {package: [stage.get(package, "") for stage in stages.values()] for package in packages},
    }
