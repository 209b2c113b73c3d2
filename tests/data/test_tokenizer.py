import subprocess
import sys

import pytest

from jaxalign.data.tokenizer import Tokenizer, load_tokenizer
from jaxalign.errors import InputError
from tests.data.tiny_tokenizers import byte_level, sentencepiece_style


def test_a_bos_is_there_only_where_ordinary_calls_add_one():
    tokenizer = Tokenizer(sentencepiece_style())
    a, mark = tokenizer.vocabulary["a"], tokenizer.vocabulary["▁"]
    assert tokenizer.ids("a") == [mark, a]
    assert tokenizer.prompt_ids("a") == [1, mark, a]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)

    backend = byte_level(special=("<|im_start|>",))
    backend.bos_token = "<|im_start|>"  # named, as SmolLM2's is, but never added
    tokenizer = Tokenizer(backend)
    assert tokenizer.prompt_ids("ab") == tokenizer.ids("ab")
    assert tokenizer.bos_id is None
    assert tokenizer.eos_id == tokenizer.vocabulary["<|endoftext|>"]


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_a_batch_is_its_texts_one_by_one(make):
    tokenizer = Tokenizer(make(merges=(("p", "o"), ("po", "s"))))
    texts = ["pos", "a long one, po\n", "积极 é", "pos"]
    assert tokenizer.batch_prompt_ids(texts) == [tokenizer.prompt_ids(text) for text in texts]


def test_byte_level_is_told_from_the_tokenizer_itself():
    assert Tokenizer(byte_level()).is_byte_level
    assert not Tokenizer(sentencepiece_style()).is_byte_level


def test_a_missing_eos_is_named():
    backend = byte_level()
    backend.eos_token = None
    with pytest.raises(InputError, match="eos_token"):
        _ = Tokenizer(backend).eos_id


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_a_saved_tokenizer_loads_equal(tmp_path, make):
    tokenizer = Tokenizer(make(merges=(("p", "o"), ("po", "s"))))
    tokenizer.backend.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocabulary == tokenizer.vocabulary
    assert loaded.prompt_ids("pos é 积") == tokenizer.prompt_ids("pos é 积")
    assert (loaded.bos_id, loaded.eos_id) == (tokenizer.bos_id, tokenizer.eos_id)


def test_fingerprint_changes_with_the_vocabulary_and_not_with_a_call():
    first = Tokenizer(byte_level(merges=(("p", "o"),)))
    same = Tokenizer(byte_level(merges=(("p", "o"),)))
    same.backend(["a", "abc"], padding=False, truncation=True, max_length=2)
    assert same.fingerprint == first.fingerprint
    assert Tokenizer(byte_level(merges=(("p", "a"),))).fingerprint != first.fingerprint


def test_a_folder_without_tokenizer_files(tmp_path):
    with pytest.raises(InputError, match="no tokenizer files"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="no tokenizer files"):
        load_tokenizer(tmp_path / "absent")


def test_a_cut_off_tokenizer_file(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {')
    with pytest.raises(InputError, match="does not load") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_the_import_waits_for_its_use():
    """Neither transformers (seconds) nor torch (no run-time dependency) comes with the module."""
    code = "import sys, jaxalign.data.tokenizer; print({'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
