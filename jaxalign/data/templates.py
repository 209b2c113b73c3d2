"""Chat templates: a question pair as the token ids that a model is tuned on.

U is the pair's prompt, R its response:

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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from jaxalign.data.languages import did_you_mean
from jaxalign.data.pairs import QuestionPair
from jaxalign.data.tokenizer import Tokenizer
from jaxalign.errors import InputError


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
        """The whole prompt."""
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
Rendered = tuple[list[int], list[int]]
"""The token ids of a prompt and of its response."""
AT_ONCE = 1024
"""Pairs that are tokenised together: enough for all cores, and what the tokenizer tells of them stays small."""
_OF_FAMILY = {"mistral": "mistral", "qwen2": "qwen"}


def resolve_template(name: str, family: str) -> str:
    """The template's name; "auto" is the model family's own ("mistral", "qwen2"), none for other families."""
    if name == "auto":
        return _OF_FAMILY.get(family, "none")
    if name not in TEMPLATES:
        known = ["auto", *TEMPLATES]
        raise InputError(f"template: no template {name!r}{did_you_mean(name, known)}: {', '.join(known)}")
    return name


def render_text(pair: QuestionPair, template: str, tokenizer: Tokenizer) -> tuple[str, str]:
    """(prompt, response) as text, BOS and the closing token written out as the tokenizer spells them."""
    opening, closing = edges(template, tokenizer)
    spelt = [tokenizer.backend.convert_ids_to_tokens(edge) for edge in (opening, [closing])]
    return "".join(spelt[0]) + TEMPLATES[template].around(pair.prompt), pair.response + "".join(spelt[1])


def render(pair: QuestionPair, template: str, tokenizer: Tokenizer) -> Rendered:
    """(prompt ids, response ids), each side tokenised alone, as in LLaMA-Factory: no token spans the seam.

    A SentencePiece-style tokenizer therefore puts its leading ▁ on the response too. Under a `joined` template it does
    not: the text is tokenised whole, and as many ids count as the prompt's as the prompt has alone. Control tokens are
    those that the template spells; where the pair's own texts do, that stays text. A template whose special token the
    tokenizer lacks raises InputError.
    """
    [rendered] = render_all([pair], template, tokenizer)
    return rendered


def render_all(pairs: Iterable[QuestionPair], template: str, tokenizer: Tokenizer) -> Iterator[Rendered]:
    """`render` of every pair, in order; of many at a time, so that all cores tokenise."""
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
    shape = TEMPLATES[template]
    for token in shape.special_tokens:
        if token in tokenizer.beyond:
            raise InputError(
                f"template: {template} needs {token!r}, for which the model's embedding has no row; resize the "
                "embedding, or choose another template"
            )
        _require(token in tokenizer.vocabulary, template, repr(token))
    closing = tokenizer.vocabulary[shape.special_tokens[-1]] if shape.special_tokens else tokenizer.eos_id
    if shape.opening == "as the tokenizer":
        return tokenizer.opening, closing
    bos = tokenizer.vocabulary.get(str(tokenizer.backend.bos_token)) if shape.opening == "always" else None
    _require(bos is not None or shape.opening != "always", template, "a begin-of-text token")
    return [] if bos is None else [bos], closing


def _require(present: bool, template: str, token: str) -> None:
    if not present:
        raise InputError(f"template: {template} needs {token}, which the tokenizer lacks; choose another template")
