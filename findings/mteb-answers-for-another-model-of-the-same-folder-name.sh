#!/usr/bin/env bash
# Guess:    `mteb.evaluate(model, task)` on two different SentenceTransformers, each opened from a folder of its own, gives
#           the figures of each.
# Seen:     with mteb 2.26.24 and sentence-transformers 6.2.0 the second gets the figures of the first and is never run,
#           if the last parts of the folders' paths are the same. Results are kept on disk by the model's name (the
#           folder's last part) and revision, and a model from a folder has none ("no_revision_available").
#           The same call with cache=None gives the true figure.
# Hence:    evaluate local models with cache=None, or give model_card_data.base_model_revision a value that changes
#           with the weights.
# Fails if this changes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 mteb==2.26.24 sentence-transformers==6.2.0 transformers==5.23.0 datasets==5.2.0
cd "$work"
export MTEB_CACHE="$work/cache" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cat > seen.py <<'PY'
import mteb
import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

TOPICS = ["bread", "tides", "cats", "mines", "rome"]


class Five(AbsTaskRetrieval):
    metadata = TaskMetadata(
        name="FiveTopics", dataset={"path": "none", "revision": "1"}, description="Five texts.", reference=None,
        type="Retrieval", category="t2t", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"],
        main_score="ndcg_at_10", date=None, domains=None, task_subtypes=None, license=None, annotations_creators=None,
        dialect=None, sample_creation=None, bibtex_citation="",
    )

    def load_data(self, *_, **__):
        corpus = Dataset.from_list([{"id": f"d{i}", "title": "", "text": f"about {t}"} for i, t in enumerate(TOPICS)])
        queries = Dataset.from_list([{"id": f"q{i}", "text": t} for i, t in enumerate(TOPICS)])
        relevant = {f"q{i}": {f"d{i}": 1} for i in range(5)}
        self.dataset = {"default": {"test": {"corpus": corpus, "queries": queries, "relevant_docs": relevant,
                                             "top_ranked": None}}}
        self.data_loaded = True


def model(folder, table):
    words = {word: number for number, word in enumerate(["[UNK]", "about", *TOPICS])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    made = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=table.astype("float32"))])
    made.save(folder)
    return SentenceTransformer(folder)


def score(folder, table, **options):
    result = mteb.evaluate(model(folder, table), Five(), show_progress_bar=False, **options)
    return round(float(result.task_results[0].get_score()), 4)


told_apart = np.eye(7, 8)  # a dimension a word
mixed_up = np.ones((7, 8))  # all words alike: it cannot tell any text from another
first = score("one/model", told_apart)
second, true = score("two/model", mixed_up), score("two/model", mixed_up, cache=None)
print(f"first {first}; second {second}; second without the cache {true}")
raise SystemExit(0 if second == first != true else 1)
PY
"$work/venv/bin/python" seen.py 2> "$work/log" || { cat "$work/log" >&2; echo "mteb behaves otherwise now." >&2; exit 1; }
