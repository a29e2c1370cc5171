"""The schema of a config: its fields, whether their values are valid, which field a typo means."""

import difflib
import inspect
import re
from collections.abc import Mapping

import ml_collections

from mixmo_jax.configs import common
from mixmo_jax.errors import InputError, invalid, shortened
from mixmo_jax.field_rules import RULES, is_of_type

# What people call some fields elsewhere.
_ALIASES = {
    "lr": "optimizer.learning_rate",
    "rate": "optimizer.learning_rate",
    "wd": "optimizer.weight_decay",
    "epochs": "num_epochs",
    "members": "model.num_members",
    "M": "model.num_members",
    "repetitions": "batch_repetitions",
    "bs": "batch_size",
}


def field_names() -> list[str]:
    """Returns the names of all fields, such as "model.depth"."""
    return list(RULES)


def unknown_field(name: str, prefix: str = "") -> InputError:
    """Returns the error for a field that does not exist; it names those that may be meant.

    Args:
      name: The name given, such as "model.dept" or "lr".
      prefix: The text before a field's name in the message, such as "--config.".
    """
    name = shortened(name)
    group, _, leaf = name.rpartition(".")
    leaves = {field: field.rpartition(".")[2] for field in RULES}
    if group and group in {field.rpartition(".")[0] for field in leaves}:
        leaves = {field: v for field, v in leaves.items() if field.startswith(f"{group}.")}
    close = [field for field in leaves if leaves[field] == leaf]
    close += [_ALIASES[leaf]] if leaf in _ALIASES else []
    near = difflib.get_close_matches(leaf, leaves.values(), n=2, cutoff=0.75)
    close += [field for field in leaves if leaves[field] in near]
    close += [field for field in leaves if not close and len(leaf) > 2 and leaf in leaves[field]]
    close += difflib.get_close_matches(name, RULES, n=1, cutoff=0.85)
    listed = [f"{prefix}{field}" for field in list(dict.fromkeys(close))[:3]]
    if listed:
        hint = f"did you mean {' or '.join(listed)}?"
    elif len(leaves) < len(RULES):
        hint = f"{group} has {', '.join(leaves.values())}"
    else:
        hint = "see configs/common.py"
    return InputError(f"{prefix}{name}: no such config field; {hint}")


def describe_fields() -> str:
    """Lists all fields with their defaults and the comments of `configs/common.py`."""
    lines, comment = [], []
    for line in inspect.getsource(common.get_config).splitlines():
        line = line.strip()
        if line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif found := re.fullmatch(r"config\.([\w.]+) = (.*?)(?:  # (.*))?", line):
            field, default, note = found.groups()
            if field in RULES and field != "method":
                lines.append(f"  {field} = {default}")
                text = " ".join([*comment, *([note] if note else [])])
                lines += [f"      {text}"] if text else []
            comment = []
        else:
            comment = []
    return "\n".join(lines)


def check(config: ml_collections.ConfigDict) -> None:
    """Checks that the config has just the known fields, each with a valid value.

    Raises:
      InputError: if it does not.
    """
    check_fields(flatten(config))


def check_fields(fields: Mapping[str, object]) -> None:
    """Checks a flat config, `{"model.depth": 28, …}`.

    Raises:
      InputError: see `check`.
    """
    for field in fields.keys() - RULES.keys():
        raise unknown_field(field)
    for field, (kind, _, test) in RULES.items():
        if field not in fields:
            raise InputError(f"{field}: missing, expected {allowed_values(field)}")
        value = fields[field]
        if not is_of_type(value, kind) or not test(value):
            raise invalid(field, value, allowed_values(field))
    if fields["batch_size"] % fields["batch_repetitions"]:
        allowed = f"a multiple of batch_repetitions={fields['batch_repetitions']}"
        raise invalid("batch_size", fields["batch_size"], allowed)
    count, members = fields["model.num_members"], fields["evaluation.members"]
    if max(members, default=0) >= count:
        raise invalid("evaluation.members", members, f"less than model.num_members={count}")
    if fields["optimizer.name"] == "adamw" and fields["optimizer.momentum"] == 1:
        raise invalid("optimizer.momentum", fields["optimizer.momentum"], "less than 1 for adamw")


def from_json_value(field: str, value: object) -> object:
    """Returns the value of a field as JSON holds it in the type that the field has.

    A list becomes a tuple, an integer a float where the field is a number, and "inf", which JSON
    cannot hold otherwise, too. What is of another type stays as it is.
    """
    kind = RULES[field][0] if field in RULES else None
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if kind is float and (value in ("inf", "-inf", "nan") or is_of_type(value, float)):
        return float(value)
    return value


def allowed_values(field: str) -> str:
    """Returns what a field allows, in words."""
    allowed = RULES[field][1]
    return allowed() if callable(allowed) else allowed


def flatten(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Returns the config as a flat dictionary, `{"model.depth": 28, …}`."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update({f"{key}.{inner}": v for inner, v in flatten(value).items()})
        else:
            flat[key] = value
    return flat
