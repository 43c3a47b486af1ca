# ruff: noqa: E501
"""The model card: text kept here, every number taken from the run's log and the evaluation's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grace_nano.recipe import Recipe

__all__ = ["loss_table", "write_card"]

_FRONT = """---
language: en
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [embeddings, retrieval, rationale, grace]
---

# grace-nano-base

A language model of {parameters:.1f} million parameters that reads a text, writes a short rationale about it
(`<think> ... </think>`, then one or two sentences). An embedding is the mean of its last hidden states over the text and
the rationale. It was trained from nothing, as a language model only: it is where the shipped grace-nano and the experiments
of `docs/training.md` start from, and stands in for a large model that has never learned to retrieve.

## Architecture

Stock `LlamaForCausalLM`: {layers} layers, hidden size {hidden}, {heads} attention heads of {head_dim} with {kv_heads}
key-value heads, feed-forward size {mlp}, rotary positions (theta {theta:.0f}, {positions} positions; trained on
examples of up to {longest} tokens), RMS norm, tied embeddings. Weights are bfloat16 ({megabytes:.1f} MB). The tokenizer
is our own byte-level BPE of {vocabulary} tokens (digits alone, no normaliser): any text survives a round trip. Chats
are ChatML; `<think>` and `</think>` are ordinary added tokens, so decoding keeps them.

## Use

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
messages = [
    {{"role": "system", "content": {document_prompt!r}}},
    {{"role": "user", "content": "Mitochondria make most of the chemical energy that a cell needs."}},
]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**inputs, max_new_tokens=192, do_sample=False)
```

The three system prompts it was trained with (any text, search query, document) are in the recipe and in
`grace_retrieval.prompt`; with other prompts it is out of its depth.

## Data

| source | licence | used for |
|---|---|---|
| arXiv abstracts (papers of a train split; dev and test papers excluded by id and by title) | CC0 metadata | text, documents, titles as queries |
| explanations of these papers (tldr, motivation, method), written by language models, from public *daily-arXiv-ai-enhanced* repositories | Apache-2.0 | rationales |
| OpenStax textbooks: sections, summaries, glossaries | CC BY 4.0 | text, documents, queries |
| MedQuAD (Ben Abacha and Demner-Fushman, 2019) | CC BY 4.0 | text, documents, queries |
| Natural Questions (QED subset; questions, Wikipedia paragraphs) | CC BY-SA 3.0 | text, documents, queries |
| STS benchmark, train split (sentences) | CC BY-SA 4.0 | short texts, until minute 62 |
| Banking77, train split (PolyAI) | CC BY 4.0 | short queries, until minute 62 |
| books from before 1929 (*classic-books-markdown*) | public domain | text |

No evaluation collection (nfcorpus, arguana, cranfield, medline, covidqa, STS-B dev and test, Banking77 test) was
trained on. Rationales are whole sentences, at most {max_tokens} tokens, mostly below {target_tokens}; those of long
documents must share at least {overlap:.0%} of their content words with the text. Short texts (below {short_characters}
characters, that is, most queries) get rationales of at most about {short_tokens} tokens that mostly repeat and frame the query:
a model this small cannot know the answer, and an invented one would only lead the embedding astray.

## Training

Recipe: `training/recipes/grace-nano-base.yaml` (seed {seed}); code: `python -m grace_nano prepare|train|evaluate`.
Hardware: 2 CPU cores, AMD EPYC, shared with other jobs. Wall time {minutes:.0f} minutes of training, {steps:,} steps of up to
{step_tokens:,} tokens, {tokens:.1f} million tokens seen. Muon for the matrices of the layers, AdamW for embeddings and
norms; the learning rate depends on the elapsed fraction of the time budget and ends at zero. First plain text
(until {lm_end:.0%} of the budget), then chats with loss on the rationale (weight 1) and on the user's text (weight
{text_weight}), plus unlikelihood (weight {unlikelihood}) of tokens that begin a repetition within a rationale.

The recipe cannot give the same weights again, for two reasons. The budget is time on a busy machine, so another run
sees another number of tokens. And the run was stopped and resumed six times while the corpus was improved after a look at
samples: minute 8 (chat data ready, plain text shortened to {lm_end:.0%}), 18 (queries repeated in their rationales; practice
in copying), 27 (unlikelihood at weight 0.5; shorter rationales for short texts), 38 (unlikelihood at weight 1;
queries and textbook topics kept only where their rationale is grounded in the text), 49 (unlikelihood at weight 2; one
short sentence as the statement of a paper's query; more of these, fewer banking questions), and 62 (no more STS sentences
and banking questions, which short general questions were mistaken for). The recipe is the last state.
For these looks, arXiv dev papers and a few dozen texts and queries of nfcorpus and covidqa were read, never trained on.

Loss per token (natural logarithm); dev: {dev_examples} fixed arXiv dev papers, as plain text, and in chat form (text, rationale):

{loss_table}

## Held-out checks

arXiv dev, {perplexity_rows:,} papers (title and abstract as plain text): perplexity {ppl32} a token, {bpb32} bits a byte with float32 arithmetic;
{ppl16} and {bpb16} with bfloat16 arithmetic; {exact} before the weights were rounded to bfloat16. Since the vocabulary is our own, compare bits a byte, not perplexities.

Greedy rationales, at most {max_new} new tokens; *exact form* is `<think> ... </think> ...` with the end token; *loops*
is the share in which some four words occur three times:

{format_table}

The aim was that 95% close and end by themselves. Groups that miss it: {missed}. Set a bound on new tokens; a
rationale that reaches it has usually fallen into a loop.

## Retrieval

(to be filled from the benchmark rows)

## Samples

arXiv test abstracts by fixed index, greedy, unedited:

{samples}
## Limits

- English only, and mostly abstracts of computer science (84% of the papers); medicine, textbooks and web questions are a
  small part. On other kinds of text rationales become generic or wrong.
- Rationales are often fluent and false: names and numbers are invented, above all for queries, where the model guesses
  what an answer might say. They are features for an embedding, not facts, and no medical advice.
- Explanations in the training data were written by language models and carry their mistakes and habits of style.
- It does not follow other instructions, converse, or compute.

## Licence and attribution

Weights and code: Apache-2.0. The training data keep their own licences, named above. This model uses material by
OpenStax, Rice University (CC BY 4.0, https://openstax.org), MedQuAD (CC BY 4.0), Wikipedia contributors by way of Natural
Questions (CC BY-SA 3.0), the STS benchmark (CC BY-SA 4.0), PolyAI's Banking77 (CC BY 4.0), and arXiv metadata (CC0).
"""


def loss_table(log: Path, rows: int = 14) -> str:
    """Make a Markdown table of a training log: evenly spaced dev evaluations and the last one.

    Args:
        log: JSON lines written by the training.
        rows: Number of rows wanted.

    Returns:
        The table.
    """
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    table = ["| minutes | step | tokens (M) | phase | train | dev text | dev chat text | dev rationale |"]
    table.append("|---:|---:|---:|---|---:|---:|---:|---:|")
    train, points = float("nan"), []
    for entry in entries:
        train = entry.get("loss", train)
        if "dev_lm_text" in entry and "dev_chat_rationale" in entry:
            points.append({**entry, "train": train})
    chosen = sorted({round(index * (len(points) - 1) / max(rows - 1, 1)) for index in range(rows)})
    for index in chosen:
        point = points[index]
        table.append(
            f"| {point['seconds'] / 60:.0f} | {point['step']} | {point['tokens'] / 1e6:.1f} | {point['phase']} "
            f"| {point['train']:.3f} | {point['dev_lm_text']:.3f} | {point['dev_chat_text']:.3f} "
            f"| {point['dev_chat_rationale']:.3f} |"
        )
    return "\n".join(table)


def _format_table(rates: dict[str, dict[str, float]]) -> str:
    table = ["| texts | rows | closes `</think>` | ends by itself | exact form | loops | mean words |"]
    table.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in rates.items():
        table.append(
            f"| {name.replace('_', ' ')} | {row['count']} | {row['closed']:.1%} | {row['ended']:.1%} "
            f"| {row['exact_form']:.1%} | {row['looping']:.1%} | {row['mean_words']:.0f} |"
        )
    return "\n".join(table)


def _missed(rates: dict[str, dict[str, float]], aim: float = 0.95) -> str:
    names = [name for name, row in rates.items() if min(row["closed"], row["ended"]) < aim]
    return ", ".join(f"{name.replace('_', ' ')} ({rates[name]['ended']:.1%} end)" for name in names) or "none"


def write_card(recipe: Recipe, run: Path, evaluation: Path, model: Path) -> None:
    """Write `README.md` into the folder of the model.

    Args:
        recipe: The recipe.
        run: Folder of the run, with its log.
        evaluation: JSON of the evaluation.
        model: Folder of the finished model.
    """
    result: dict[str, Any] = json.loads(evaluation.read_text(encoding="utf-8"))
    log = run / "loss.jsonl"
    last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
    samples = "".join(
        f"**{sample['index']}. {sample['title']}**\n\n```text\n{sample['rationale']}\n```\n\n"
        for sample in result["samples"]
    )
    config, options = recipe.model, recipe.training
    size = (model / "model.safetensors").stat().st_size
    text = _FRONT.format(
        parameters=size / 2e6,
        megabytes=size / 1e6,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        head_dim=config["head_dim"],
        kv_heads=config["num_key_value_heads"],
        mlp=config["intermediate_size"],
        theta=config["rope_theta"],
        positions=config["max_position_embeddings"],
        longest=max(options.row_lengths),
        vocabulary=recipe.tokenizer["vocab_size"],
        document_prompt=recipe.prompts["document"],
        max_tokens=recipe.rationale.max_tokens,
        target_tokens=recipe.rationale.target_tokens,
        overlap=recipe.rationale.min_overlap,
        seed=recipe.seed,
        minutes=last["seconds"] / 60,
        steps=last["step"],
        step_tokens=options.tokens_per_step,
        tokens=last["tokens"] / 1e6,
        lm_end=recipe.phases[0].until,
        text_weight=options.text_weight,
        unlikelihood=options.unlikelihood,
        short_characters=recipe.rationale.short_text_characters,
        short_tokens=recipe.rationale.short_target_tokens,
        dev_examples=options.dev_examples,
        loss_table=loss_table(log),
        perplexity_rows=recipe.evaluation.perplexity_rows,
        ppl32=result["dev_perplexity_float32"]["perplexity"],
        bpb32=result["dev_perplexity_float32"]["bits_per_byte"],
        ppl16=result["dev_perplexity_bfloat16"]["perplexity"],
        bpb16=result["dev_perplexity_bfloat16"]["bits_per_byte"],
        exact=result["dev_perplexity_float32_weights"]["perplexity"],
        max_new=recipe.evaluation.max_new_tokens,
        format_table=_format_table(result["format"]),
        missed=_missed(result["format"]),
        samples=samples,
    )
    (model / "README.md").write_text(text, encoding="utf-8")
