"""Preparation: train the tokenizer, then tokenise every source of the recipe into an `ExampleStore`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer

from grace_nano.encoding import ChatEncoder, encode_plain
from grace_nano.examples import chat_examples
from grace_nano.recipe import Recipe
from grace_nano.sources import lm_texts, read_arxiv, tokenizer_texts
from grace_nano.store import ExampleStore
from grace_nano.tokenizer import save_tokenizer, train_tokenizer

__all__ = ["load_tokenizer", "prepare"]

_LOG = logging.getLogger(__name__)
_BLOCK = 2000


def load_tokenizer(recipe: Recipe) -> Tokenizer:
    """Load the recipe's tokenizer from its working folder."""
    return Tokenizer.from_file(str(recipe.work / "tokenizer" / "tokenizer.json"))


def prepare(recipe: Recipe, only: Iterable[str] = ()) -> None:
    """Write the tokenizer (unless it is there) and the stores.

    Args:
        recipe: The recipe.
        only: Names of the sources to make; all of them when empty.
    """
    if not (recipe.work / "tokenizer" / "tokenizer.json").exists():
        tokenizer = train_tokenizer(tokenizer_texts(recipe), recipe.tokenizer["vocab_size"])
        save_tokenizer(tokenizer, recipe.work / "tokenizer", recipe.model["max_position_embeddings"])
    tokenizer = load_tokenizer(recipe)
    wanted = set(only)
    names = [*(name for phase in recipe.phases for name in phase.mixture), "dev_lm", "dev_chat"]
    for name in names:
        if wanted and name not in wanted:
            continue
        store = ExampleStore.build(_encode(recipe, name, tokenizer))
        store.save(store_folder(recipe, name))
        _LOG.info("%s: %d examples, %d tokens", name, len(store), len(store.ids))


def store_folder(recipe: Recipe, name: str) -> Path:
    """Return the folder of a source's store."""
    return recipe.work / "data" / name


def _encode(recipe: Recipe, name: str, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    longest = max(recipe.training.row_lengths)
    if name == "dev_lm":
        papers = read_arxiv(recipe.data, "dev")
        held_out = [f"{row.title}\n\n{row.abstract}" for row in papers.itertuples()]
        yield from encode_plain(tokenizer, held_out, longest)
    elif name.startswith("lm_"):
        texts = lm_texts(recipe, name)
        while block := list(itertools.islice(texts, _BLOCK)):
            yield from encode_plain(tokenizer, block, longest)
    else:
        encoder = ChatEncoder(tokenizer, recipe.prompts, recipe.rationale, longest)
        examples = iter(chat_examples(recipe, name))
        while chat_block := list(itertools.islice(examples, _BLOCK)):
            yield from encoder.encode(chat_block)
