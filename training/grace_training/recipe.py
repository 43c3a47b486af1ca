"""A recipe: one YAML file that says which model is trained on what, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from grace_retrieval.bundled import DEFAULT_MODEL
from grace_retrieval.errors import InputError
from grace_retrieval.near import did_you_mean
from grace_training.values import annotations_of, read_mapping, read_value

__all__ = ["Method", "Recipe", "Source", "find_recipe", "list_recipes", "load_recipe"]

Method = Literal["base", "reasoning", "contrastive", "simcse", "eos", "paper", "grace", "sft"]

_PLAIN = {"name", "description", "model", "end_token", "data_folder", "temperature", "dropout"}
_PLAIN |= {"budget_seconds", "threads", "teacher"}

_FOLDERS = (Path(__file__).parent / "recipes", Path(__file__).parents[1] / "recipes")
"""Where recipes are in an installed package, and in a checkout."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One file of training data.

    Attributes:
        path: A .jsonl, .csv or .parquet file; relative paths start at the recipe's `data_folder`.
        columns: What its columns are called; see `load_examples`.
        instruction: Put before its queries.
        limit: Rows to draw.
    """

    path: str
    columns: Mapping[str, str] | None = None
    instruction: str = ""
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training run is made of.

    Attributes:
        name: Name of the recipe.
        method: "base" (no training, text alone), "reasoning" (no training, with rationales), "contrastive" (InfoNCE on
            text alone), "simcse" (the same without labels), "eos" (InfoNCE on the last token of the text alone),
            "paper", "grace", or "sft" (InfoNCE on texts alone and with the rationales that the data gives, which are
            learned too; nothing is written).
        description: One line for `grace train --list-recipes`.
        model: What `GraceEmbedder` opens.
        embedder: Further arguments of GraceEmbedder, such as max_seq_length and max_new_tokens.
        end_token: A token that ends a rationale too, such as "</think>" for a policy whose reasoning says enough; it is
            saved with the model. Empty: only those of the policy.
        interpolation: Share of the trained weights in what is saved; the rest is the model before training. 1 saves the
            trained weights. Not with adapters, nor "eos".
        data_folder: Where relative paths of `data` start; the folder one works in if empty.
        data: Sources.
        training: Options of GraceConfig ("paper", "grace", "sft") or of SentenceTransformerTrainingArguments.
        temperature: Temperature of InfoNCE ("contrastive", "simcse", "eos"); `training.reward_temperature` is that of
            the others.
        dropout: Attention dropout that makes two views of a text ("simcse").
        teacher: A sentence-transformers model whose similarities within a batch are soft targets beside InfoNCE, where
            nothing is written ("grace" with rationale_every other than 1, "sft"). Empty: none.
        lora: Options of `peft.LoraConfig`, if adapters are trained.
        adapter: An adapter of the model that is trained further: a folder of PEFT's, or a bundled one such as
            "grace-small"; it has its own options, so without lora. Empty: none.
        reward_terms: Reward terms of one's own ("paper", "grace"): name → function as "module:function", or a mapping
            with function and weight.
        monitor: Options of Monitor, and "source", a Source of held-out texts; nothing is watched without.
        budget_seconds: CPU seconds of training steps after which it ends, however many steps that are; see Budget.
        threads: Threads of torch; None leaves them as they are.
    """

    name: str
    method: Method
    description: str = ""
    model: str = DEFAULT_MODEL
    embedder: Mapping[str, Any] = field(default_factory=dict)
    end_token: str = ""
    interpolation: float = 1.0
    data_folder: str = ""
    data: Sequence[Source] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.1
    dropout: float = 0.1
    teacher: str = ""
    lora: Mapping[str, Any] | None = None
    adapter: str = ""
    reward_terms: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    monitor: Mapping[str, Any] | None = None
    budget_seconds: float | None = None
    threads: int | None = None

    def path_of(self, source: Source) -> Path:
        """Where a source's file is."""
        return Path(self.data_folder) / source.path


def list_recipes() -> dict[str, Path]:
    """Recipes that come with the package: name → file."""
    found: dict[str, Path] = {}
    for folder in _FOLDERS:
        for path in sorted(folder.glob("*.yaml")):
            if "\nmethod:" in "\n" + path.read_text(encoding="utf-8"):
                found.setdefault(path.stem, path)
    return found


def find_recipe(name: str | os.PathLike[str]) -> Path:
    """The file of a recipe.

    Args:
        name: A file, or the name of a recipe that comes with the package.

    Raises:
        InputError: If there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = list_recipes()
    if str(name) in known:
        return known[str(name)]
    raise InputError(
        f"There is no recipe {str(name)!r}: give a .yaml file, or one of {', '.join(known) or '(none)'}."
        f"{did_you_mean(str(name), known)}"
    )


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        name: A file, or the name of a recipe that comes with the package.
        overrides: Changes as "key=value" with dots for what lies deeper, e.g. "training.learning_rate=1e-5". Values are
            YAML.

    Raises:
        InputError: If the file is no recipe, or an override names nothing.
    """
    path = find_recipe(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is no recipe: it must be a mapping with name, method, model, data and training.")
    content.setdefault("name", path.stem)
    for override in overrides:
        _apply(content, override)
    known = {entry.name for entry in fields(Recipe)}
    if unknown := sorted(set(content) - known):
        first = unknown[0]
        raise InputError(
            f"{path}: unknown {', '.join(f'{key}={content[key]!r}' for key in unknown)}; a recipe has "
            f"{', '.join(sorted(known))}.{did_you_mean(str(first), known)}"
        )
    if content.get("method") not in get_args(Method):
        raise InputError(
            f"{path}: method={content.get('method')!r}: give one of {', '.join(get_args(Method))}."
            f"{did_you_mean(str(content.get('method')), get_args(Method))}"
        )
    annotations = annotations_of(Recipe)
    for key in _PLAIN & content.keys():
        content[key] = read_value(f"{path}: {key}", content[key], annotations[key])
    for key in ("embedder", "training", "lora", "monitor"):
        if not isinstance(content.get(key) or {}, dict):
            raise InputError(f"{path}: {key}={content[key]!r}: give a mapping from options to values.")
    if not isinstance(content.get("data") or [], list):
        raise InputError(f"{path}: data={content['data']!r}: give a list of sources, each a mapping with a path.")
    share = content.get("interpolation", 1.0)
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InputError(f"{path}: interpolation={share!r}: give the share of the trained weights, from 0 to 1.")
    if share != 1 and (content.get("lora") is not None or content.get("adapter") or content["method"] == "eos"):
        raise InputError(f"{path}: interpolation is for whole weights: not with lora, nor with method eos.")
    content["data"] = [_source(path, entry) for entry in content.get("data") or ()]
    if content["method"] not in ("base", "reasoning") and not content["data"]:
        raise InputError(f"{path}: method {content['method']} needs data: give at least one source with a path.")
    if content.get("monitor") is not None and "source" in content["monitor"]:
        content["monitor"] = {**content["monitor"], "source": _source(path, content["monitor"]["source"])}
    content["reward_terms"] = _terms(path, content)
    content["training"] = {
        # YAML 1.1 takes a bare `no` for false.
        key: "no" if key.endswith("_strategy") and value is False else _number(value)
        for key, value in (content.get("training") or {}).items()
    }
    return Recipe(**content)


def _source(path: Path, entry: Any) -> Source:
    known = annotations_of(Source)
    if not isinstance(entry, dict) or "path" not in entry or set(entry) - set(known):
        unknown = sorted(set(entry) - set(known)) if isinstance(entry, dict) else []
        raise InputError(
            f"{path}: a source is a mapping with {', '.join(sorted(known))}, and this is {entry!r}."
            f"{did_you_mean(unknown[0], known) if unknown else ''}"
        )
    source = Source(**read_mapping(f"{path}: data", entry, known))
    if source.limit is not None and source.limit < 1:
        raise InputError(f"{path}: data.limit={source.limit!r}: give a positive whole number of rows, or leave it out.")
    return source


def _terms(path: Path, content: Mapping[str, Any]) -> dict[str, tuple[str, float]]:
    """Reward terms as function and weight; they are imported when the training begins."""
    entries = content.get("reward_terms") or {}
    if not isinstance(entries, dict):
        raise InputError(f"{path}: reward_terms is {entries!r}: give a mapping from names to functions.")
    if entries and content["method"] not in ("paper", "grace"):
        raise InputError(f"{path}: reward_terms are for the methods paper and grace, not {content['method']}.")
    found: dict[str, tuple[str, float]] = {}
    for name, entry in entries.items():
        term = {"function": entry} if isinstance(entry, str) else entry
        if not isinstance(term, dict) or "function" not in term or set(term) - {"function", "weight"}:
            raise InputError(
                f"{path}: reward_terms.{name}={entry!r}: give 'module:function', or a mapping with function and weight."
            )
        found[str(name)] = (str(term["function"]), _number(term.get("weight", 1.0)))
    return found


def _number(value: Any) -> Any:
    """YAML 1.1 takes 1e-6 for a string, because it lacks a point."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _apply(content: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise InputError(f"--override {override!r}: give key=value, e.g. training.learning_rate=1e-5.")
    *path, last = name.split(".")
    place: Any = content
    for part in path:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise InputError(f"--override {override!r}: {part!r} is no mapping in this recipe.")
    try:
        place[last] = _number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise InputError(f"--override {override!r}: the value is not YAML.") from error
