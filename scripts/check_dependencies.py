"""Check licenses, sources and bans of all dependencies against deny.toml, without the cargo-deny program.

    python scripts/check_dependencies.py

Covers what deny.toml uses of `cargo deny check bans licenses sources`: every package of every platform and
feature has an allowed license, comes from crates.io or this workspace, and no requirement is `*`. It takes a
second; scripts/long_checks.sh runs cargo-deny itself. Requires Python 3.11.
"""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent


def is_allowed(expression, allowed):
    """Whether the SPDX expression `expression` can be satisfied with licenses in `allowed`."""
    # "MIT/Apache-2.0" is an old form of "MIT OR Apache-2.0".
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        found = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            found = both() or found
        return found

    def both():
        found = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            found = one() and found
        return found

    def one():
        token = tokens.pop(0)
        if token == "(":
            found = either()
            assert tokens.pop(0) == ")", expression
            return found
        if tokens and tokens[0] == "WITH":
            tokens.pop(0)
            token = f"{token} WITH {tokens.pop(0)}"
        return token in allowed

    found = either()
    assert not tokens, expression
    return found


def cargo(*arguments):
    command = ["cargo", *arguments, "--locked"]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def packages():
    """(package, license, source) of everything that any build uses: all features, all platforms, and tests."""
    # `cargo tree` follows features exactly; `cargo metadata` also lists packages that no build uses.
    tree = cargo("tree", "--workspace", "--all-features", "--target", "all", "--prefix", "none", "-f", "{p}|{l}")
    for line in sorted({line.removesuffix(" (*)") for line in tree.splitlines() if line}):
        package, license = line.split("|")
        found = re.fullmatch(r"(\S+ v\S+)( \(proc-macro\))?(?: \((.*)\))?", package)
        yield found[1], license, found[3]


def problems(deny):
    allowed = set(deny["licenses"]["allow"])
    banned = {entry if isinstance(entry, str) else entry["name"] for entry in deny["bans"].get("deny", [])}
    for package, license, source in packages():
        if not license:
            yield f"{package}: no license"
        elif not is_allowed(license, allowed):
            yield f"{package}: license {license} is not allowed"
        # Packages of crates.io have no source here, ours their folder.
        if source is not None and ROOT not in pathlib.Path(source).parents:
            yield f"{package}: source {source} is not allowed"
        if package.split()[0] in banned:
            yield f"{package}: banned"
    for package in json.loads(cargo("metadata", "--no-deps", "--format-version", "1"))["packages"]:
        for dependency in package["dependencies"]:
            if dependency["req"] == "*" and "path" not in dependency:
                yield f"{package['name']}: the requirement of {dependency['name']} is a wildcard"


def self_test():
    allowed = {"MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"}
    for expression, expected in [
        ("MIT OR GPL-3.0", True),
        ("MIT AND GPL-3.0", False),
        ("(MIT OR GPL-3.0) AND Apache-2.0", True),
        ("MIT/Apache-2.0", True),
        ("GPL-3.0 OR Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0 WITH LLVM-exception", False),
    ]:
        assert is_allowed(expression, allowed) is expected, expression


def main():
    self_test()
    found = list(problems(tomllib.loads((ROOT / "deny.toml").read_text())))
    print("\n".join(found) or f"{len(set(packages()))} packages: licenses, sources and bans as in deny.toml")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
