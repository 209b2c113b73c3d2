from jaxalign.data.prompts import candidate_ids, collisions, label_candidates
from jaxalign.data.tokenizer import Tokenizer
from tests.data.tiny_tokenizers import byte_level, sentencepiece_style


def spelt(tokenizer: Tokenizer, word: str) -> set[str]:
    ids = candidate_ids(word, tokenizer)
    assert ids == sorted(set(ids))
    texts = {index: text for text, index in tokenizer.vocabulary.items()}
    return {texts[index] for index in ids}


def test_prefixes_bare_and_after_the_space_mark():
    pieces = ("▁p", "▁pos", "pos", "positive", "▁positive", "▁positives", "tive", "▁n", "os", "Pos")
    tokenizer = Tokenizer(sentencepiece_style(pieces))
    assert spelt(tokenizer, "positive") == {"p", "pos", "positive", "▁p", "▁pos", "▁positive"}


def test_a_native_word_adds_the_byte_piece_of_its_first_byte():
    tokenizer = Tokenizer(sentencepiece_style(("积", "▁积极", "极")))
    # 积 is E7 A7 AF in UTF-8
    assert spelt(tokenizer, "积极") == {"积", "▁积极", "<0xE7>"}
    # An ASCII word has no byte piece, although <0x70> is in the vocabulary.
    assert spelt(tokenizer, "po") == {"p"}
    # The rule looks at the first character alone.
    assert spelt(tokenizer, "négatif") == {"n"}
    assert spelt(tokenizer, "émotion") == {"<0xC3>"}


def test_a_byte_level_vocabulary_adds_first_tokens():
    tokenizer = Tokenizer(byte_level((("p", "o"), ("ç", "§"))))
    # p, po: vocabulary keys; pos is no key, and its first token is po.
    assert spelt(tokenizer, "pos") == {"p", "po"}
    # 积 is E7 A7 AF, spelt ç § ¯ in the byte alphabet; the merge makes ç§ the first token of both prefixes.
    assert spelt(tokenizer, "积极") == {"ç§"}


def test_first_tokens_can_be_left_out():
    tokenizer = Tokenizer(byte_level((("p", "o"), ("ç", "§"))))
    for word, expected in {"pos": {"p", "po"}, "积极": set()}.items():
        texts = {index: text for text, index in tokenizer.vocabulary.items()}
        assert {texts[index] for index in candidate_ids(word, tokenizer, first_tokens=False)} == expected


def test_first_tokens_are_not_taken_from_a_sentencepiece_vocabulary():
    # Its first token for any prefix is the lone ▁, which begins every word alike.
    tokenizer = Tokenizer(sentencepiece_style())
    assert tokenizer.ids("so")[0] == tokenizer.vocabulary["▁"]
    assert spelt(tokenizer, "so") == {"s"}


def test_a_word_that_the_vocabulary_lacks_has_no_candidates():
    tokenizer = Tokenizer(sentencepiece_style())
    tokenizer.vocabulary.pop("x")
    assert candidate_ids("xyz", tokenizer) == []


def test_shared_candidates_are_found():
    tokenizer = Tokenizer(sentencepiece_style(("▁po",)))
    found = label_candidates({"positive": "po", "middle": "pa", "negative": "ne"}, tokenizer)
    assert collisions(found) == {("positive", "middle"): [tokenizer.vocabulary["p"]]}
