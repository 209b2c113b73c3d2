"""One view of a fast tokenizer: what prompts, pairs and label words need from it, whatever its family."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxalign.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Tokenizer:
    """A fast Hugging Face tokenizer, as it is; nothing here changes its settings."""

    backend: "PreTrainedTokenizerFast"

    def ids(self, text: str) -> list[int]:
        """Token ids of a text alone: no BOS, no EOS."""
        return list(self.backend(text, add_special_tokens=False)["input_ids"])

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of an ordinary call, as evaluation prompts take them: with a BOS where the tokenizer adds one."""
        return list(self.backend(text)["input_ids"])

    def batch_prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`prompt_ids` of every text, of one at least, tokenised in parallel."""
        return list(self.backend(list(texts), return_attention_mask=False)["input_ids"])

    @cached_property
    def bos_id(self) -> int | None:
        """The begin-of-text id that an ordinary call puts first; None where it puts none (SmolLM2, Qwen)."""
        first = self.prompt_ids("a")[0]
        return first if first == self.backend.bos_token_id else None

    @cached_property
    def eos_id(self) -> int:
        """The end-of-text id; a tokenizer without one raises InputError."""
        eos = self.backend.eos_token
        if eos not in self.vocabulary:
            raise InputError(f"{self.backend.name_or_path}: the tokenizer's eos_token is {eos!r}; it must be a token")
        return self.vocabulary[str(eos)]

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text, as the vocabulary spells it, to id; added tokens included."""
        return self.backend.get_vocab()

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are spelt in the byte alphabet of GPT-2 (Ġ for a space) and not as text with ▁ and <0xHH>."""
        return _has_type([self._serialised["decoder"], self._serialised["pre_tokenizer"]], "ByteLevel")

    def token_bytes(self, token: str) -> bytes:
        """The UTF-8 bytes, perhaps a part of a character's, that a vocabulary entry stands for."""
        if self.is_byte_level:
            # An added token is spelt as it is.
            known = all(character in _BYTE_OF for character in token)
            return bytes(_BYTE_OF[character] for character in token) if known else token.encode("utf-8")
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            return bytes([int(match[1], 16)])
        return token.replace("▁", " ").encode("utf-8")

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the serialised tokenizer, without the padding and truncation that calls may set."""
        content = {key: value for key, value in self._serialised.items() if key not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).hexdigest()

    @property
    def _serialised(self) -> dict[str, Any]:
        return json.loads(self.backend.backend_tokenizer.to_str())


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder; one without tokenizer files, or only a slow one, raises InputError."""
    # An unfound folder would be taken for a name on a model hub; and the import is slow, so it waits until here.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise InputError(f"{folder}: no tokenizer files (tokenizer.json) there; is this a model folder?")
    from transformers import AutoTokenizer

    try:
        backend = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a broken file makes of transformers and tokenizers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: the tokenizer does not load ({reason}); are its files complete?") from None
    if not backend.is_fast:
        raise InputError(f"{folder}: only fast tokenizers are read; save this one with its tokenizer.json")
    return Tokenizer(backend)


def _byte_of() -> dict[str, int]:
    """GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF = _byte_of()


def _has_type(part: Any, name: str) -> bool:
    """Whether a serialised component, or one inside it, is of the type `name`."""
    if isinstance(part, list):
        return any(_has_type(item, name) for item in part)
    if isinstance(part, dict):
        return part.get("type") == name or any(_has_type(item, name) for item in part.values())
    return False
