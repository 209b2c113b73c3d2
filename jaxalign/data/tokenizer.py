"""One view of a fast tokenizer, whatever its family: what prompts, pairs and label words need from it.

Chat templates: a question pair as the token ids that a model is tuned on. U is the pair's prompt, R its response:

    template   prompt                                                        response
    default    Human: U\\nAssistant:␠                                         R eos
    mistral    BOS [INST] U [/INST]                                          R eos
    qwen       <|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n   R <|im_end|>
               <|im_start|>user\\nU<|im_end|>\\n<|im_start|>assistant\\n
    alpaca     BOS where the tokenizer's ordinary call adds one,             R eos
               Below is an instruction ...\\n\\n### Instruction:\\nU\\n\\n### Response:
    none       BOS where the tokenizer's ordinary call adds one, U           R eos

The first three are LLaMA-Factory's, as of v0.5.3 to v0.6.2; `alpaca` is Alpaca's without an input, as QAlign
(arXiv 2401.07817) tunes and tests with it: nothing follows the last colon. Prompts that labels are scored on
take no template.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizers import AddedToken
from tokenizers import Tokenizer as TokenizerFile

from jaxalign.data.languages import did_you_mean
from jaxalign.data.pairs import QuestionPair
from jaxalign.errors import InputError, listed
from jaxalign.files import MINI, read_json, read_text
from jaxalign.log import warn
from jaxalign.sentence_piece import is_marker, read_sentence_piece

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_CONTROL = re.compile(r"<.+>|\[.+\]", re.DOTALL)
"""How control tokens are spelt. A role may also be given to a word: some models pad with "!"."""


@dataclass(frozen=True)
class Tokenizer:
    """A fast Hugging Face tokenizer, and the rules by which texts become ids everywhere.

    Text stays text: where it spells a control token (</s>, <|im_end|>) it is cut into pieces like any other word. Only
    templates, ours and the model's own, make control tokens. A prompt begins as the tokenizer's ordinary call begins,
    with a BOS or without, and goes on: whatever that call puts behind a text, such as an EOS, is left out.
    """

    backend: "PreTrainedTokenizerFast"
    rows: int | None = None
    """Of the model's embedding, where a model is there: an id beyond them is never given, but raises InputError."""

    def __post_init__(self) -> None:
        """Marks as control tokens those that only by their name are."""
        tokens = self.backend.backend_tokenizer
        marked = {token.content for token in tokens.get_added_tokens_decoder().values() if token.special}
        unmarked = [token for token in self.backend.get_vocab() if token not in marked and is_marker(token)]
        tokens.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in unmarked])

    def ids(self, text: str) -> list[int]:
        """Of a text alone: no BOS, no EOS."""
        return self.batch_ids([text])[0]

    def batch_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of every text, made in parallel."""
        found = self._encoded(texts, split_special_tokens=True)
        # A character that the vocabulary lacks may be the unknown token.
        refused = self.control_ids if self.is_byte_level else self.control_ids.difference([self.backend.unk_token_id])
        for text, ids in zip(texts, found, strict=True):
            if not refused.isdisjoint(ids):
                token = next(token for token, id in self.control_tokens.items() if id in ids)
                raise InputError(
                    f"{text[:60]!r}: this tokenizer cannot write {token} as text; take it out, or use another tokenizer"
                )
        return found

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a text as evaluation prompts take it: behind a BOS where the tokenizer adds one."""
        return self.batch_prompt_ids([text])[0]

    def batch_prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[*self.opening, *ids] for ids in self.batch_ids(texts)]

    def template_ids(self, text: str) -> list[int]:
        """Token ids of a text that a template wrote: control tokens that it spells are those tokens. No BOS, no EOS."""
        return self._encoded([text], split_special_tokens=False)[0]

    def batch_ids_between(self, before: str, texts: Sequence[str], after: str) -> list[list[int]]:
        """Token ids of before + text + after as one text, of which a template wrote the first and the last."""
        *first, left = self._around_controls(before)
        right, *last = self._around_controls(after)
        whole = [before + text + after for text in texts]
        if not first and not last:
            return self.batch_ids(whole)

        def apart(text: str) -> list[int]:
            """Where the text spells control tokens too, what lies between those of the template is by itself."""
            runs = [*first, left + text + right, *last]  # text, control token, text, ...
            parts = ([self.control_tokens[run]] if index % 2 else self.ids(run) for index, run in enumerate(runs))
            return [id for part in parts for id in part]

        found = self._encoded(whole, split_special_tokens=False)
        count = (len(first) + len(last)) // 2
        controls = (sum(id in self.control_ids for id in ids) for ids in found)
        return [ids if own == count else apart(text) for text, ids, own in zip(texts, found, controls, strict=True)]

    def _encoded(self, texts: Sequence[str], split_special_tokens: bool) -> list[list[int]]:
        """The ids that a call of the backend gives, without the masks and offsets that it makes beside them."""
        engine = self.backend.backend_tokenizer
        # Settings that every call of the backend makes anew.
        engine.no_truncation()
        engine.no_padding()
        engine.encode_special_tokens = split_special_tokens
        found = [encoding.ids for encoding in engine.encode_batch_fast(list(texts), add_special_tokens=False)]
        for text, ids in zip(texts, found if self.beyond else [], strict=False):
            if token := next((token for token, id in self.beyond.items() if id in ids), None):
                raise InputError(
                    f"{text[:60]!r}: {token} is token {self.beyond[token]}, and the model's embedding has {self.rows} "
                    "rows; take it out, or resize the embedding"
                )
        return found

    @cached_property
    def beyond(self) -> dict[str, int]:
        """Tokens, in the order of their ids, for which the model's embedding has no row: of added tokens, usually."""
        found = [] if self.rows is None else [each for each in self.backend.get_vocab().items() if each[1] >= self.rows]
        return dict(sorted(found, key=lambda each: each[1]))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token text, as the vocabulary spells it, to id; added tokens included, but for those `beyond` the model."""
        return {token: id for token, id in self.backend.get_vocab().items() if token not in self.beyond}

    @cached_property
    def control_tokens(self) -> dict[str, int]:
        """Tokens that steer a model (<s>, <|im_end|>), as they are spelt, to their ids."""
        added = self.backend.backend_tokenizer.get_added_tokens_decoder()
        return {token.content: id for id, token in added.items() if token.special and _CONTROL.fullmatch(token.content)}

    @cached_property
    def control_ids(self) -> frozenset[int]:
        return frozenset(self.control_tokens.values())

    @cached_property
    def _around_controls(self) -> Callable[[str], list[str]]:
        """Cuts what a template wrote into text, control token, text, ...; some vocabularies have thousands of them."""
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        return cache(re.compile("(" + ("|".join(map(re.escape, longest_first)) or r"(?!)") + ")").split)

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """What an ordinary call adds before a text and behind it."""
        call: Any = self.backend("a", return_special_tokens_mask=True)
        ids, added = call["input_ids"], call["special_tokens_mask"]
        first, last = (added.index(0), len(added) - added[::-1].index(0)) if 0 in added else (len(ids), len(ids))
        return ids[:first], ids[last:]

    @property
    def opening(self) -> list[int]:
        """The ids that an ordinary call puts first: a BOS, or none (SmolLM2, Qwen)."""
        return self._edges[0]

    @property
    def bos(self) -> str | None:
        """What prompts begin with, as records tell it."""
        return self.spelt(self.opening)

    def spelt(self, ids: Sequence[int]) -> str | None:
        """Control tokens as records tell them; None where there are none."""
        return " ".join(self.backend.convert_ids_to_tokens(list(ids))) or None

    def warnings(self, family: str) -> list[str]:
        """What a user may not expect of this tokenizer in a model of that family."""
        found = []
        if self.beyond:
            found.append(
                f"the tokenizer has tokens ({listed([*self.beyond])}) without a row in the model's embedding of "
                f"{self.rows}; a template that makes one is refused"
            )
        if behind := self.spelt(self._edges[1]):
            found.append(f"the tokenizer puts {behind} behind every text (add_eos_token); here nothing stands there")
        # Of Llama's byte-level tokenizers Llama 3's has a BOS and SmolLM2's has none: there is no convention.
        known = family != "llama" or not self.is_byte_level or self.backend.bos_token == "<|begin_of_text|>"
        usual = 0 if family == "qwen2" else 1
        if known and len(self.opening) != usual:
            found.append(
                f"prompts begin with {self.bos or 'no begin-of-text token'}, as the tokenizer's files say "
                f"(add_bos_token); {family} models are trained {'with one' if usual else 'without'}"
            )
        return found

    def check_rows(self, where: Any) -> None:
        """Refuses a tokenizer whose texts, or what stands around every text, may need a row that the model lacks.

        Control tokens alone may lack one, which no text makes: a released Gemma 3 has one for images.
        """
        added = self.backend.backend_tokenizer.get_added_tokens_decoder()
        always = {str(self.backend.eos_token), *map(str, self.backend.convert_ids_to_tokens(self.opening))}
        needed = [
            token for token, id in self.beyond.items() if token in always or not (id in added and added[id].special)
        ]
        if needed:
            raise InputError(
                f"{where}: the tokenizer has tokens ({listed(needed)}) without a row in the model's embedding of "
                f"{self.rows} (vocab_size); resize it (transformers: resize_token_embeddings), or "
                "take the tokens out of the tokenizer"
            )

    @cached_property
    def eos_id(self) -> int:
        """The end-of-text id; a tokenizer without one raises InputError."""
        eos = self.backend.eos_token
        if eos not in self.vocabulary:
            raise InputError(
                f"{self.backend.name_or_path}: the tokenizer's eos_token is {eos!r}; it must be a token of the model"
            )
        return self.vocabulary[str(eos)]

    @cached_property
    def is_byte_level(self) -> bool:
        """Whether tokens are spelt in the byte alphabet of GPT-2 (Ġ for a space) and not as text with ▁ and <0xHH>."""
        engine = self.backend.backend_tokenizer
        return any('"type": "ByteLevel"' in json.dumps(_state(part)) for part in (engine.decoder, engine.pre_tokenizer))

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
        """sha256 of what the tokenizer does: its vocabulary, what it opens with, and its ids of the packaged exemplars.

        Not of its file, which another version of tokenizers writes otherwise.
        """
        vocabulary = sorted((id, token) for token, id in self.backend.get_vocab().items())
        content = [vocabulary, sorted(self.control_ids), self.opening, self.ids(read_text(MINI / "exemplars.json"))]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode("utf-8")).hexdigest()


_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_OF = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF |= {chr(0x100 + i): byte for i, byte in enumerate(byte for byte in range(256) if byte not in _PRINTABLE)}
"""GPT-2's byte alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 onwards, in order."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, as its own files have it."""
    # An unfound folder would be taken for a name on a model hub.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        raise InputError(f"{folder}: no tokenizer files (tokenizer.json) there; is this a model folder?")
    try:
        if not (folder / "tokenizer.json").is_file() and (folder / "tokenizer.model").is_file():
            backend = _from_sentence_piece(folder)
        else:
            backend = _from_tokenizer_file(folder)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # whatever a broken file makes of transformers and tokenizers
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{folder}: the tokenizer does not load ({reason}); are its files complete?") from None
    if getattr(backend.backend_tokenizer.model, "dropout", None):
        backend.backend_tokenizer.model.dropout = None  # a setting of training: it cuts words at random
    return Tokenizer(backend)


def _from_sentence_piece(folder: Path) -> "PreTrainedTokenizerFast":
    """What tokenizer.model says, with the settings of the files beside it.

    Not by transformers, which orders merges by the vocabulary and not by the model's scores.
    """
    import transformers

    class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):  # a name that any version can load when saved
        @classmethod
        def convert_to_native_format(cls, **settings: Any) -> dict[str, Any]:
            return settings  # there is nothing left to convert

    tokenizer, roles = read_sentence_piece(folder / "tokenizer.model")
    beside = [folder / name for name in ("special_tokens_map.json", "tokenizer_config.json")]
    named = {role for file in beside if file.is_file() for role in read_json(file)}
    settings: dict[str, Any] = {role: token for role, token in roles.items() if role not in named}
    return PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, tokenizer_object=tokenizer, **settings
    )


def _from_tokenizer_file(folder: Path) -> "PreTrainedTokenizerFast":
    """What transformers makes of a folder, but with the parts of its tokenizer.json as they are there.

    For some families transformers takes the vocabulary alone from the file, and the rest from the family's class.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # mistral_format: not tekken.json, which is taken first where the package for it is installed.
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "mistral_format": False}
    backend = AutoTokenizer.from_pretrained(folder, **settings)
    if not backend.is_fast:
        raise InputError(f"{folder}: only fast tokenizers are read; save this one with its tokenizer.json")
    path = folder / "tokenizer.json"
    if type(backend) is PreTrainedTokenizerFast or not path.is_file():
        return backend
    loaded, own = backend.backend_tokenizer, TokenizerFile.from_file(str(path))
    parts = ("normalizer", "pre_tokenizer", "model")
    replaced = [part for part in parts if _plain(_state(getattr(loaded, part))) != _plain(_state(getattr(own, part)))]
    for part in (*parts, "decoder"):
        setattr(loaded, part, getattr(own, part))
    if replaced:
        warn(
            f"{path}: its {', '.join(replaced)} is not that of {type(backend).__name__}, which transformers "
            "takes for this family; the file's is used here, and transformers by itself may give other ids"
        )
    if others := own.get_vocab().items() - loaded.get_vocab().items():
        token, index = min(others, key=lambda each: each[1])
        raise InputError(f"{path}: token {token!r} has id {index} there and another one as transformers loads it")
    return backend


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _plain(state: Any) -> Any:
    """A component's settings without what changes no id: where an offset lies, and what is off, may be left out."""
    if isinstance(state, dict):
        kept = {key: _plain(each) for key, each in state.items() if key != "trim_offsets"}
        return {key: each for key, each in kept.items() if each is not None and each is not False and each != ""}
    return [_plain(each) for each in state] if isinstance(state, list) else state


@dataclass(frozen=True)
class Template:
    """before, after: text around the user turn. opening: whether a BOS comes first.

    special_tokens: those that the text spells out; the last of them closes the response. Without any, eos does.
    joined: prompt and response are tokenised as one text (QAlign), not each alone (LLaMA-Factory).
    """

    before: str
    after: str
    opening: Literal["always", "as the tokenizer", "never"]
    special_tokens: tuple[str, ...] = ()
    joined: bool = False

    def around(self, user_turn: str) -> str:
        return self.before + user_turn + self.after


TEMPLATES: dict[str, Template] = {
    "default": Template("Human: ", "\nAssistant: ", opening="never"),
    "mistral": Template("[INST] ", " [/INST]", opening="always"),
    "qwen": Template(
        before="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
        after="<|im_end|>\n<|im_start|>assistant\n",
        opening="never",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    "alpaca": Template(
        before="Below is an instruction that describes a task. Write a response that appropriately completes the "
        "request.\n\n### Instruction:\n",
        after="\n\n### Response:",
        opening="as the tokenizer",
        joined=True,
    ),
    "none": Template("", "", opening="as the tokenizer"),
}
AT_ONCE = 1024
"""Pairs that are tokenised together: enough for all cores, and what the tokenizer tells of them stays small."""


def resolve_template(name: str, family: str) -> str:
    """The template's name; "auto" is the model family's own ("mistral", "qwen2"), none for other families."""
    if name == "auto":
        return {"mistral": "mistral", "qwen2": "qwen"}.get(family, "none")
    if name not in TEMPLATES:
        known = ["auto", *TEMPLATES]
        raise InputError(f"template: no template {name!r}{did_you_mean(name, known)}: {', '.join(known)}")
    return name


def render_all(
    pairs: Iterable[QuestionPair], template: str, tokenizer: Tokenizer
) -> Iterator[tuple[list[int], list[int]]]:
    """(prompt ids, response ids) of every pair, in order; many are tokenised at a time, so that all cores do.

    Each side is tokenised alone, as in LLaMA-Factory: no token spans the seam. A SentencePiece-style tokenizer so puts
    its leading ▁ on the response too. Under a `joined` template it does not: the text is tokenised whole, and as
    many ids count as the prompt's as the prompt has alone. Control tokens are those that the template spells; where the
    pair's own texts do, that stays text. A template whose special token the tokenizer lacks raises InputError.
    """
    shape = TEMPLATES[template]
    opening, closing = edges(template, tokenizer)
    remaining = iter(pairs)
    while some := list(islice(remaining, AT_ONCE)):
        prompts = tokenizer.batch_ids_between(shape.before, [pair.prompt for pair in some], shape.after)
        if shape.joined:
            texts = [pair.prompt + shape.after + pair.response for pair in some]
            whole = tokenizer.batch_ids_between(shape.before, texts, "")
            split = [(ids[: len(prompt)], ids[len(prompt) :]) for prompt, ids in zip(prompts, whole, strict=True)]
        else:
            split = zip(prompts, tokenizer.batch_ids([pair.response for pair in some]), strict=True)
        for prompt, response in split:
            yield opening + prompt, [*response, closing]


def edges(template: str, tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The ids before the prompt (a BOS or nothing) and the id that closes the response."""
    shape, bos = TEMPLATES[template], str(tokenizer.backend.bos_token)
    needed = {token: repr(token) for token in shape.special_tokens}
    if shape.opening == "always":
        needed[bos] = "a begin-of-text token"
    for token, named in needed.items():
        if token not in tokenizer.vocabulary:
            lacking = "the model's embedding has no row for" if token in tokenizer.beyond else "the tokenizer lacks"
            raise InputError(f"template: {template} needs {named}, which {lacking}; choose another template")
    closing = tokenizer.vocabulary[shape.special_tokens[-1]] if shape.special_tokens else tokenizer.eos_id
    if shape.opening == "as the tokenizer":
        return tokenizer.opening, closing
    return [tokenizer.vocabulary[bos]] if shape.opening == "always" else [], closing
