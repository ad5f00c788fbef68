"""Record the fields that transformers writes to config.json, with its own defaults.

Writes the default config of every model type that nextword imports to
tests/fixtures/config_defaults.json, beside those of other versions of transformers that are in the file.
The test `default_configs_of_transformers_are_accepted` imports them all, so a field that a new version
adds and nextword does not know fails there. Lists the fields that the file did not have before.

    pip install transformers
    python scripts/check_config_fields.py          # adds the installed version
    python scripts/check_config_fields.py --check  # writes nothing, and fails if a field is new

The committed file comes from transformers 4.46.3 and 5.24.0.
"""

import json
import sys
from pathlib import Path

import transformers

PATH = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "config_defaults.json"
TYPES = (
    "gpt2", "llama", "mistral", "qwen2", "qwen3", "gpt_neox", "gemma", "gemma2", "gemma3_text", "bert",
    "bart",
)  # fmt: skip
# Small enough for tests; each model type divides its heads.
SMALL = {"num_hidden_layers": 6, "n_layer": 6, "max_window_layers": 6}


def defaults(model_type):
    """Return the default config of a model type, with every field, as it is written to a file."""
    config_class = transformers.CONFIG_MAPPING[model_type]
    fields = config_class().to_dict()
    fields = config_class(**{key: n for key, n in SMALL.items() if key in fields}).to_dict()
    fields |= {"architectures": None, "dtype": fields.get("dtype")}
    return json.loads(json.dumps(fields, default=str))


def main():
    """Update or check the file."""
    recorded = json.loads(PATH.read_text()) if PATH.exists() else {}
    known = {
        (model_type, field)
        for configs in recorded.values()
        for model_type, config in configs.items()
        for field in config
    }
    mapping = transformers.CONFIG_MAPPING
    found = {name: defaults(name) for name in TYPES if name in mapping}
    new = sorted({(name, field) for name, config in found.items() for field in config} - known)
    for model_type, field in new:
        print(f"{model_type}: {field} = {json.dumps(found[model_type][field])}")
    if "--check" in sys.argv:
        sys.exit(f"{len(new)} new fields" if new else 0)
    recorded[transformers.__version__] = found
    lines = [
        f"{json.dumps(version)}: {{\n"
        + ",\n".join(f"{json.dumps(n)}: {json.dumps(c, sort_keys=True)}" for n, c in configs.items())
        + "\n}"
        for version, configs in sorted(recorded.items())
    ]
    PATH.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
