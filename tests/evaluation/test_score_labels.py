"""Scores behind a shared prefix, packed and batched, against one uncached text at a time in transformers."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pytest
import torch

from jaxalign.data.prompts import Continuation, LabelQuery, few_shot_prefix, few_shot_prompt, label_queries
from jaxalign.data.tasks import TASKS, TaskRow
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError
from jaxalign.evaluation import score as scoring
from jaxalign.evaluation.score import LabelScores, Scorer, shared_prefix_length
from jaxalign.model.lora import LoraConfig, init_lora, merge_lora
from jaxalign.model.transformer import Decoder
from jaxalign.runtime import make_mesh
from tests import tiny_world
from tests.data.tiny_tokenizers import sentencepiece_style
from tests.model.tiny_models import FAMILIES, VOCABULARY, TinyModel, tiny_case, tiny_model
from tests.training.tiny_runs import mesh_of

LABELS = [[5, 9, 30], [7], [11, 12]]
# Float32 on both sides through a few tiny layers, then a softmax: masses differ in the seventh digit.
ATOL = 1e-5


def some_queries(shared: int = 37) -> list[LabelQuery]:
    """Prompts of 38 to 107 tokens with words of every kind: branches of 1 to 3 tokens, and one that parts earlier."""
    random = np.random.default_rng(0)
    prefix = random.integers(1, VOCABULARY, shared).tolist()
    queries = []
    for length in (3, 70, 2, 20, 33, 9, 5, 41, 13):
        prompt = prefix + random.integers(1, VOCABULARY, length).tolist()
        words = [Continuation([*prompt, 5, 6, 7], len(prompt)), Continuation([*prompt, 3], len(prompt))]
        words.append(Continuation([*prompt[:-1], 9, 8], len(prompt) - 1))
        queries.append(LabelQuery(prompt, tuple(words)))
    return queries


QUERIES = some_queries()


def uncached(torch_model: Any, queries: Sequence[LabelQuery], label_sets: Sequence[Sequence[int]]) -> LabelScores:
    """One text at a time, whole, in transformers; in float64 from the logits on."""

    def log_probabilities(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            return torch.log_softmax(torch_model(torch.tensor([ids])).logits[0].double(), -1).numpy()

    masses = [
        [np.exp(last[list(ids)]).sum() for ids in label_sets]
        for last in (log_probabilities(query.prompt)[-1] for query in queries)
    ]
    words = []
    for query in queries:
        every = [log_probabilities(word.ids) for word in query.words]
        words.append(
            [
                sum(given[at - 1, word.ids[at]] for at in range(word.scored_from, len(word.ids)))
                for given, word in zip(every, query.words, strict=True)
            ]
        )
    return LabelScores(np.array(masses), np.array(words))


def assert_same(ours: LabelScores, expected: LabelScores) -> None:
    np.testing.assert_allclose(ours.prefix_mass, expected.prefix_mass, atol=ATOL, rtol=1e-4)
    # Sums of up to three log-probabilities of about -5.
    np.testing.assert_allclose(ours.whole_word, expected.whole_word, atol=5e-5)


def score(tiny: TinyModel, mesh: tuple[int, int, int] = (1, 1, 1), batch_tokens: int = 256, **options: Any):
    variables = {"params": tiny.params}
    scorer = Scorer(Decoder(tiny.config), variables, mesh_of(*mesh), batch_tokens)
    return scorer.score(variables, options.get("queries", QUERIES), options.get("labels", LABELS))


@pytest.mark.parametrize("case", FAMILIES)
def test_scores_are_those_of_uncached_transformers(case: str):
    # Gemma's and Mistral's window is 5: queries look back over the seam into the prefix and beyond its reach.
    tiny = tiny_case(case)
    scores = score(tiny)
    assert scores.prefix_mass.dtype == np.float32 and scores.whole_word.dtype == np.float64
    assert_same(scores, uncached(tiny.torch_model, QUERIES, LABELS))


@pytest.mark.parametrize("shared", [0, 1, 64, 65])
def test_prefixes_of_any_length(shared: int):
    tiny = tiny_case("gemma3_text")
    queries = [query for query in some_queries(shared) if len(query.prompt) < 100]
    assert_same(score(tiny, queries=queries), uncached(tiny.torch_model, queries, LABELS))


MERGES = {
    "merged over the seam": (('"', "\n"),),
    "merged in some rows": (("\n", "A"), ('"', "\n")),
    "merged with the word": (('"', "p"), ('"', "\n")),
}


@pytest.mark.parametrize("merges", MERGES.values(), ids=MERGES.keys())
def test_the_cache_is_right_at_the_seam(tmp_path, merges):
    """A tokenizer that merges the prefix's last quote with what follows: the few-shot text alone is no token prefix."""
    tokenizer = Tokenizer(sentencepiece_style(pieces=("\n",), merges=merges))
    tiny = tiny_model("llama", vocabulary=len(tokenizer.vocabulary))
    exemplars = tiny_world.write_data(tmp_path)
    rows = [TaskRow("emotion", "de", i, (text,), "", "") for i, text in enumerate(("Ab", "No", "A", "Not so."))]
    queries = label_queries(rows, exemplars, tokenizer, "english", "study")
    text = few_shot_prefix(TASKS["emotion"], "de", exemplars, "english")
    assert few_shot_prompt(rows[0], exemplars, "english").startswith(text)
    ids = tokenizer.prompt_ids(text)
    assert any(query.prompt[: len(ids)] != ids for query in queries)
    labels = [tokenizer.ids("p"), tokenizer.ids("n")]
    assert_same(score(tiny, queries=queries, labels=labels), uncached(tiny.torch_model, queries, labels))


def test_scores_do_not_depend_on_order_batch_or_company():
    tiny = tiny_case("gemma3_text")
    together = score(tiny)
    order = np.random.default_rng(1).permutation(len(QUERIES))
    shuffled = score(tiny, batch_tokens=128, queries=[QUERIES[i] for i in order])
    assert_same(shuffled, LabelScores(*(array[order] for array in together)))
    # Alone, all of a prompt but its last token is the prefix.
    assert_same(score(tiny, batch_tokens=1024, queries=QUERIES[:1]), LabelScores(*(array[:1] for array in together)))


def test_scores_do_not_depend_on_the_edges_of_fixed_lengths(monkeypatch: pytest.MonkeyPatch):
    tiny = tiny_case("mistral_gqa")
    expected = score(tiny)
    monkeypatch.setattr(scoring, "SHORTEST_ROW", 77)
    monkeypatch.setattr(scoring, "READS", 64)
    monkeypatch.setattr("jaxalign.model.ragged.prefix_bucket", lambda length: length + 3)
    assert_same(score(tiny), expected)


@pytest.mark.parametrize(
    ("case", "mesh"),
    [
        ("gemma3_text", (2, 2, 2)),
        *(pytest.param("gemma3_text", mesh, marks=pytest.mark.slow) for mesh in ((2, 1, 1), (1, 1, 2), (8, 1, 1))),
        *(("qwen2", mesh) for mesh in ((1, 2, 1), (2, 2, 2))),
    ],
)
def test_scores_do_not_depend_on_the_mesh(case: str, mesh: tuple[int, int, int]):
    # 64 divides where 61 does not; Gemma's one key/value head stays whole on two devices.
    tiny = tiny_model(**{"family": case, "tied": True, "kv_heads": 1 if case == "gemma3_text" else 2}, vocabulary=64)
    assert_same(score(tiny, mesh), uncached(tiny.torch_model, QUERIES, LABELS))


def test_queries_without_words_have_masses_alone():
    tiny = tiny_case("qwen2")
    bare = [LabelQuery(query.prompt, ()) for query in QUERIES]
    scores = score(tiny, queries=bare)
    np.testing.assert_allclose(scores.prefix_mass, score(tiny).prefix_mass, atol=ATOL)
    assert np.isnan(scores.whole_word).all()


def test_adapters_score_like_the_merged_model():
    tiny, lora = tiny_case("qwen2"), LoraConfig(rank=4, alpha=8.0)
    zeros = init_lora(jax.random.key(0), tiny.config, lora)
    keys = iter(jax.random.split(jax.random.key(1), 8))
    adapters = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), zeros)
    adapted = {"params": tiny.params, "lora": adapters}
    merged = {"params": merge_lora(tiny.params, adapters, lora)}
    mesh = make_mesh(2, 4, 1)
    with_adapters = Scorer(Decoder(tiny.config, lora), adapted, mesh).score(adapted, QUERIES, LABELS)
    scorer = Scorer(Decoder(tiny.config), merged, mesh)
    assert_same(with_adapters, scorer.score(merged, QUERIES, LABELS))
    programs = dict(scorer.runner.compilations)
    base = scorer.score({"params": tiny.params}, QUERIES, LABELS)
    assert np.abs(with_adapters.prefix_mass - base.prefix_mass).max() > 0.01
    # The base model runs the merged model's programs.
    assert scorer.runner.compilations == programs and programs["prefill"] == programs["head"] == 1


def test_what_is_counted():
    tiny = tiny_case("qwen2")
    variables = {"params": tiny.params}
    scorer = Scorer(Decoder(tiny.config), variables, mesh_of(1, 1, 1), 256)
    seen = []
    scorer.score(variables, QUERIES, LABELS, seen.append)
    assert sum(seen) == len(QUERIES)
    counts = scorer.counts
    assert counts["prompt_tokens_asked"] == sum(len(query.prompt) for query in QUERIES)
    shared = shared_prefix_length(QUERIES)
    assert shared == 37
    assert counts["prompt_tokens_computed"] == shared + sum(len(query.prompt) - shared for query in QUERIES)
    # Behind each prompt 2 tokens of the first word; and apart, the tokens that lead to the third and its first.
    apart = sum(len(query.prompt) - shared for query in QUERIES)
    assert counts["word_tokens_computed"] == 2 * len(QUERIES) + apart
    assert counts["positions_computed"] % 64 == 0
    assert counts["positions_computed"] >= counts["prompt_tokens_computed"] + counts["word_tokens_computed"]
    before = dict(scorer.runner.compilations)
    scorer.score(variables, QUERIES, [[1], [2, 3], [4]])
    assert scorer.runner.compilations == before


def test_logits_that_are_not_finite_are_an_error():
    tiny = tiny_case("qwen2")
    broken = np.full_like(tiny.params["norm"]["scale"], np.nan)
    variables = {"params": {**tiny.params, "norm": {"scale": broken}}}
    with pytest.raises(InputError, match=r"prompt \d+: .* not finite"):
        Scorer(Decoder(tiny.config), variables, mesh_of(1, 1, 1)).score(variables, QUERIES, LABELS)


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ([], "no prompt"),
        ([LabelQuery([], ())], "prompt 0 has no tokens"),
        ([QUERIES[0], LabelQuery([1] * 129, ())], "prompt 1 has 129 tokens, the model takes 128"),
    ],
)
def test_prompts_that_cannot_be_scored(queries: list[LabelQuery], message: str):
    with pytest.raises(InputError, match=message):
        score(tiny_case("qwen2"), queries=queries)
