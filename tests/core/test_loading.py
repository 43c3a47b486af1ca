"""Model folders: what loads, what is refused with a reason, and code that must not run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import (
    AutoModelForCausalLM,
    BertConfig,
    BertModel,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from grace_retrieval import GraceEmbedder, GraceError, ModelLoadError
from grace_retrieval.loading import end_tokens, load_policy, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MakeModel = Callable[..., "PreTrainedModel"]
MakeTokenizer = Callable[..., "PreTrainedTokenizerBase"]
MakeEmbedder = Callable[..., GraceEmbedder]


@pytest.fixture
def folder(tiny_policy: Path, tmp_path: Path) -> Path:
    """A copy of tiny-policy, to be spoilt."""
    return Path(shutil.copytree(tiny_policy, tmp_path / "policy"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refuse(model: str | os.PathLike[str], match: str) -> None:
    with pytest.raises(ModelLoadError, match=match) as caught:
        GraceEmbedder(model, cache=None, device="cpu")
    assert isinstance(caught.value, OSError) and isinstance(caught.value, GraceError)


class TestMissing:
    @pytest.mark.parametrize("name", ["/no/such/folder", "./nothing", "~/nothing-here", "a/b/c", "no-such-model"])
    def test_a_folder_that_does_not_exist_is_named_with_what_to_give(self, name: str) -> None:
        refuse(name, rf"'{name}' does not exist\. Give a model folder .* grace-nano")

    def test_a_file_is_no_folder(self, folder: Path) -> None:
        refuse(folder / "config.json", r"config.json' is a file, not a folder\. Give a model folder")

    def test_a_hub_name_that_cannot_be_had_is_named_as_it_was_given(self) -> None:
        refuse("nobody/no-such-model", r"Cannot load .*'nobody/no-such-model'")

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        refuse(tmp_path, r"no config\.json, so it is not a model folder")


class TestDamaged:
    @pytest.mark.parametrize("kept", [0, 7, 100, 5_000, 150_000])
    def test_weights_cut_short(self, folder: Path, kept: int) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        refuse(folder, r"weights are damaged or cut short .* copy the folder again")

    def test_weights_overwritten(self, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"<html>404: not found</html>" * 100)
        refuse(folder, "weights are damaged or cut short")

    def test_no_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        refuse(folder, r"no \*\.safetensors file")

    def test_weights_are_not_read_from_a_pickle(self, folder: Path) -> None:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        refuse(folder, r"no \*\.safetensors file\. Convert other weights")

    def test_a_pickle_is_not_opened(self, folder: Path) -> None:
        class Bomb:
            def __reduce__(self) -> Any:
                return (os.mkdir, (str(folder / "executed"),))

        (folder / "model.safetensors").unlink()
        torch.save(Bomb(), folder / "pytorch_model.bin")
        refuse(folder, r"no \*\.safetensors file\. Convert other weights")
        assert not (folder / "executed").exists()

    @pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
    def test_a_file_that_is_no_json(self, folder: Path, name: str) -> None:
        (folder / name).write_text('{"half": ')
        refuse(folder, "Cannot load the policy")

    def test_a_shape_that_does_not_fit(self, folder: Path) -> None:
        change_json(folder / "config.json", intermediate_size=48)
        refuse(folder, "Cannot load the policy")

    def test_a_weight_that_is_missing_is_not_made_up(self, folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        name = next(name for name in sorted(tensors) if "down_proj" in name)
        save_file(
            {key: value for key, value in tensors.items() if key != name},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        refuse(folder, rf"lacks .*{name}")

    def test_no_tokenizer(self, folder: Path) -> None:
        for path in folder.glob("tokenizer*"):
            path.unlink()
        refuse(folder, r"has no tokenizer\. Save one beside the model")


class TestOtherKinds:
    @pytest.fixture
    def bert(self, tmp_path: Path, make_tokenizer: MakeTokenizer) -> Path:
        config = BertConfig(
            vocab_size=768,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            pad_token_id=0,
        )
        BertModel(config).save_pretrained(tmp_path / "bert")
        make_tokenizer().save_pretrained(tmp_path / "bert")
        return tmp_path / "bert"

    def test_an_encoder(self, bert: Path) -> None:
        refuse(bert, r"BertLMHeadModel\) is not a causal language model: it looks ahead")

    def test_a_sentence_transformers_model(self, bert: Path, tmp_path: Path) -> None:
        stock = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(32)], device="cpu")
        stock.save_pretrained(str(tmp_path / "stock"), create_model_card=False)
        refuse(
            tmp_path / "stock",
            r"writes no rationales \(its first module is Transformer\)\. Open it with SentenceTransfor",
        )

    def test_an_encoder_with_a_decoder(self, tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
        config = T5Config(vocab_size=768, d_model=32, d_ff=32, d_kv=8, num_layers=1, num_heads=2)
        T5ForConditionalGeneration(config).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        refuse(tmp_path, "Cannot load the policy|is not a causal language model")

    def test_a_classifier_whose_language_head_would_be_made_up(
        self, tmp_path: Path, make_model: MakeModel, make_tokenizer: MakeTokenizer
    ) -> None:
        LlamaForSequenceClassification(make_model("llama").config).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        refuse(tmp_path, r"lacks .*lm_head\.weight")

    def test_an_architecture_that_nobody_knows(self, folder: Path) -> None:
        change_json(folder / "config.json", model_type="from-the-future", architectures=["FutureForCausalLM"])
        refuse(folder, "Cannot load the policy .*from-the-future")


class TestForeignCode:
    @pytest.fixture
    def marker(self, tmp_path: Path) -> Path:
        return tmp_path / "executed"

    def plant(self, folder: Path, name: str, marker: Path) -> None:
        code = f"open({str(marker)!r}, 'w').close()\nclass C: pass\ndef generate(*args, **kwargs): raise SystemExit\n"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)

    @pytest.mark.parametrize("model_type", ["planted", "qwen2"])
    def test_code_of_a_model_is_refused_or_left_alone(self, folder: Path, marker: Path, model_type: str) -> None:
        self.plant(folder, "modeling_planted.py", marker)
        classes = {"AutoConfig": "modeling_planted.C", "AutoModelForCausalLM": "modeling_planted.C"}
        change_json(folder / "config.json", auto_map=classes, model_type=model_type)
        if model_type == "planted":
            refuse(folder, r"asks for Python code of its own .* trust_remote_code=True")
        else:  # transformers has code of its own for it
            assert GraceEmbedder(folder, cache=None, device="cpu", max_new_tokens=2).encode("tide").shape == (32,)
        assert not marker.exists()

    def test_code_of_a_tokenizer_is_not_run(self, folder: Path, marker: Path) -> None:
        self.plant(folder, "tokenization_planted.py", marker)
        change_json(
            folder / "tokenizer_config.json",
            auto_map={"AutoTokenizer": ["tokenization_planted.C", None]},
            tokenizer_class="PlantedTokenizer",
        )
        try:
            GraceEmbedder(folder, cache=None, device="cpu", max_new_tokens=2).encode("tide")
        except ModelLoadError as error:
            assert "trust_remote_code=True" in str(error)
        assert not marker.exists()

    def test_code_for_generation_is_not_run(self, folder: Path, marker: Path, make_embedder: MakeEmbedder) -> None:
        self.plant(folder, "custom_generate/generate.py", marker)
        change_json(
            folder / "generation_config.json", custom_generate="./custom_generate", do_sample=True, temperature=2.0
        )
        planted = make_embedder(folder)
        np.testing.assert_allclose(planted.encode("tide"), make_embedder().encode("tide"), atol=1e-6)
        planted.save_pretrained(str(folder.parent / "saved"))
        assert not marker.exists()

    def test_code_named_in_a_saved_embedder_is_not_run(self, folder: Path, marker: Path) -> None:
        self.plant(folder, "grace_planted.py", marker)
        modules = [{"idx": 0, "name": "0", "path": "", "type": "grace_planted.C"}]
        (folder / "modules.json").write_text(json.dumps(modules))
        with pytest.raises(ModelLoadError, match="trust_remote_code"):
            GraceEmbedder(folder, cache=None, device="cpu")
        assert not marker.exists()


class TestWhatIsLoaded:
    @pytest.mark.parametrize("saved", [torch.float32, torch.bfloat16])
    def test_without_a_gpu_weights_are_float32_unless_asked_otherwise(
        self, make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path, saved: torch.dtype
    ) -> None:
        make_model("llama", dtype=saved).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        if not torch.cuda.is_available():
            assert load_policy(str(tmp_path))[0].dtype == torch.float32
        assert load_policy(str(tmp_path), model_kwargs={"dtype": "auto"})[0].dtype == saved
        assert load_policy(str(tmp_path), model_kwargs={"dtype": torch.float16})[0].dtype == torch.float16

    def test_a_policy_is_not_in_training_mode(self, tiny_policy: Path) -> None:
        model, _ = load_policy(str(tiny_policy))
        assert not model.training

    def test_every_token_that_ends_a_turn_ends_a_rationale(self, tiny_policy: Path) -> None:
        model, tokenizer = load_policy(str(tiny_policy))
        assert end_tokens(model, tokenizer) == [765]
        model.generation_config.eos_token_id = [765, 766]
        model.config.eos_token_id = 12
        assert end_tokens(model, tokenizer) == [12, 765, 766]
        model.generation_config.eos_token_id = model.config.eos_token_id = tokenizer.eos_token = None
        assert end_tokens(model, tokenizer) == []

    def test_names_of_folders_and_of_the_hub_are_told_apart(
        self, tiny_policy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert resolve_model(tiny_policy) == str(tiny_policy) == resolve_model(str(tiny_policy))
        monkeypatch.chdir(tiny_policy.parent)
        assert resolve_model("tiny-policy") == "tiny-policy"
        assert resolve_model("Qwen/Qwen2.5-1.5B-Instruct") == "Qwen/Qwen2.5-1.5B-Instruct"

    @pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "bloom"])
    def test_any_causal_lm_of_transformers_becomes_an_embedder(
        self, make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path, name: str
    ) -> None:
        make_model(name).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        embedder = GraceEmbedder(tmp_path, cache=None, device="cpu", max_new_tokens=5)
        vectors = embedder.encode(["What causes tides?", "x", ""])
        assert vectors.shape == (3, 32) and np.isfinite(vectors).all()
        with torch.no_grad():
            stock = AutoModelForCausalLM.from_pretrained(tmp_path)
            features = embedder.preprocess(["x"])
            (rationale,) = embedder.rationales("x")
            ids = [*features["input_ids"][0].tolist(), *rationale.token_ids]
            states = stock(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][
                0, features["prompt_length"] :
            ]
        mean = states.mean(0).numpy()
        np.testing.assert_allclose(vectors[1], mean / np.linalg.norm(mean), atol=1e-5)

    def test_a_small_context_leaves_half_of_it_to_the_rationale(
        self, make_model: MakeModel, make_tokenizer: MakeTokenizer, tmp_path: Path
    ) -> None:
        make_model("llama", max_position_embeddings=300).save_pretrained(tmp_path)
        make_tokenizer().save_pretrained(tmp_path)
        embedder = GraceEmbedder(tmp_path, cache=None, device="cpu")
        assert embedder.writer.max_new_tokens == 150 == embedder.max_seq_length


def test_a_tokenizer_with_more_words_than_the_model_has_embeddings_is_refused(
    make_model: Callable[..., PreTrainedModel],
    make_tokenizer: Callable[..., PreTrainedTokenizerBase],
    tmp_path: Path,
) -> None:
    model = make_model("llama")  # of 776 embeddings, where the tokenizer has 768 tokens
    model.save_pretrained(tmp_path)
    make_tokenizer(added=[f"word{i}" for i in range(8)]).save_pretrained(tmp_path)
    load_policy(str(tmp_path))
    make_tokenizer(added=[f"word{i}" for i in range(9)]).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"ids up to 776, and the model has embeddings for 776.*resize"):
        load_policy(str(tmp_path))
