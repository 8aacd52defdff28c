"""Validates Kubernetes manifests with the pydantic models of cloudcoil: Istio's kinds and Kubernetes' own.

validate.py FILE... prints one JSON line per object that is valid, or of a kind that the models do not know. It exits with 1, and with
a sentence per problem on standard error, if an object is invalid.
"""

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pydantic
import yaml

# Of an API group: which package has its models. The groups of Kubernetes itself have no dot, or end in .k8s.io.
ISTIO = "istio"
KUBERNETES = "kubernetes"


class Loader(yaml.SafeLoader):
    """YAML as an API server reads it: no key twice, and what looks like a date is text."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node, deep=False):
        # Keys that `<<` merges in may be overridden: only what is written here counts.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def module_of(api_version):
    """The package and the module that would hold the models of an API version."""
    group, _, version_of_group = api_version.rpartition("/")
    package = ISTIO if group.endswith(".istio.io") else KUBERNETES
    return package, f"cloudcoil.models.{package}.{group.split('.')[0] or 'core'}.{version_of_group}"


def model_of(api_version, kind):
    """The model of a kind and its package, or nothing. Only one module is imported: all of them take seconds."""
    package, module = module_of(api_version)
    # A package that is not installed must not make kinds unknown.
    importlib.import_module(f"cloudcoil.models.{package}")
    try:
        model = getattr(importlib.import_module(module), kind, None)
    except ModuleNotFoundError:
        return None
    # Modules are named after the first word of a group, which groups of others share; and parts of kinds have models, too.
    fields = getattr(model, "model_fields", {})
    if "api_version" not in fields or fields["api_version"].default != api_version:
        return None
    name = f"cloudcoil-models-{package}"
    return model, f"{name} {version(name)}"


def field(location, manifest):
    """A field as people write it: spec.configPatches[0].applyTo."""
    path, inner = "", manifest
    for position, part in enumerate(location, 1):
        # Of a choice of models pydantic puts in which one it has tried: no part of the object is called that.
        if isinstance(inner, list) and isinstance(part, int):
            path, inner = f"{path}[{part}]", inner[part]
        elif isinstance(inner, dict) and (part in inner or position == len(location)):
            path, inner = f"{path}.{part}", inner.get(part)
    return path.lstrip(".")


def problems_of(model, manifest):
    """What is wrong with an object, a sentence each."""
    try:
        # From JSON, since strict reading of Python's own values would refuse dates. Not strict, "80" were a number and 1 were true.
        # By alias alone: else config_patches would do for configPatches.
        text = json.dumps(manifest)
        model.model_validate_json(text, strict=True, extra="forbid", by_alias=True, by_name=False)
    except pydantic.ValidationError as problems:
        # Of a choice of models each one says the same.
        return list(dict.fromkeys(f"{field(problem['loc'], manifest)}: {problem['msg']}" for problem in problems.errors()))
    return []


def is_text(value):
    return isinstance(value, str) and value != ""


def check(manifest):
    """What is to be said of an object, and its problems."""
    if not isinstance(manifest, dict):
        return None, ["not an object"]
    kind, api_version = manifest.get("kind"), manifest.get("apiVersion")
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    wanted = {"apiVersion": api_version, "kind": kind, "metadata.name": name}
    missing = [path for path, value in wanted.items() if not is_text(value)]
    if missing:
        return None, [f"{path}: it must be there, and be text" for path in missing]
    known = model_of(api_version, kind)
    said = {"kind": kind, "apiVersion": api_version, "name": name}
    if known is None:
        return said | {"result": "unknown kind", "models": None}, []
    model, package = known
    return said | {"result": "valid", "models": package}, problems_of(model, manifest)


def title(manifest, number):
    """How a sentence calls an object."""
    if not isinstance(manifest, dict):
        return f"(document {number})"
    metadata = manifest.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    words = [manifest.get("apiVersion"), manifest.get("kind"), name and json.dumps(name), f"(document {number})"]
    return " ".join(str(word) for word in words if word)


def validate(path):
    """Whether all objects of a file are valid, or of unknown kinds."""
    try:
        manifests = list(yaml.load_all(path.read_text(encoding="utf-8"), Loader))
    except yaml.YAMLError as problem:
        print(f"{path}: not YAML: {problem}", file=sys.stderr)
        return False
    # `---` before the first object or after the last one makes empty documents.
    numbered = [(number, manifest) for number, manifest in enumerate(manifests, 1) if manifest is not None]
    if not numbered:
        print(f"{path}: it holds no object", file=sys.stderr)
    valid = bool(numbered)
    for number, manifest in numbered:
        said, problems = check(manifest)
        for problem in problems:
            print(f"{path}: {title(manifest, number)} is invalid: {problem}", file=sys.stderr)
        if problems:
            valid = False
        else:
            print(json.dumps(said))
    return valid


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: validate.py FILE...")
    results = [validate(Path(path)) for path in sys.argv[1:]]
    sys.exit(0 if all(results) else 1)
