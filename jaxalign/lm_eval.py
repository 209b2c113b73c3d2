"""lm-eval, EleutherAI's evaluation harness, with one model more: `python -m jaxalign.lm_eval --model jaxalign ...`.

All its subcommands, flags and other models are as they are. Its three types of request are answered as its own `hf`
model answers them: texts become tokens, are cut where they are too long, and are put together by lm-eval's functions
wherever it has one; the numbers come from evaluation/score.py and evaluation/generate.py.
"""

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

from jaxalign import chat_templates, runtime
from jaxalign.cli import complain, open_standard_streams
from jaxalign.configuration import config_with
from jaxalign.errors import InputError
from jaxalign.evaluation.generate import Generator
from jaxalign.evaluation.score import ContinuationScore, Scorer
from jaxalign.loading import Model, merged
from jaxalign.log import log_status
from jaxalign.model.config import read_end_ids
from jaxalign.runtime import require_one_process
from jaxalign.verbs.settings import load_model

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models import utils as of_lm_eval
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError:
    if __name__ != "__main__":
        raise
    sys.exit(complain("lm-eval is not installed: pip install 'jaxalign[lm-eval]'", 2))

ARGUMENTS = ("path", "adapter", "dtype", "param_dtype", "batch_tokens", "max_length")
OF_HF = {"pretrained": "path", "peft": "adapter"}
"""Names by which lm-eval's `hf` model knows two of them: they are taken, too."""
AUTO_BATCH_SIZE = 8
"""Answers decoded at once under --batch_size auto. Batches of scores do not depend on it."""
NO_MAXIMUM = 2048
"""lm-eval's length for a model that names none."""
NOTHING_BEFORE = "a context without a token, as of white space alone, is read as the token that begins a text"
NOTHING_TO_SAY = "a continuation without a token is certain: log-likelihood 0, and as a choice it beats all others"
WITHOUT_EFFECT = {"do_sample", "temperature", "top_k", "top_p", "min_p"}
"""Settings of sampling, which greedy decoding passes over."""


@register_model("jaxalign")
class JaxalignLM(TemplateLM):
    """A jaxalign model, tuned or not, as lm-eval's `--model jaxalign`."""

    def __init__(
        self,
        /,
        path: str = "",
        adapter: str | None = None,
        dtype: str = "float32",
        param_dtype: str = "auto",
        batch_tokens: int = 1024,
        max_length: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **others: Any,
    ):
        """
        Args:
          path, or pretrained: what `--config.model` takes: a folder, a GGUF file, ORG/NAME[@REVISION] on the hub, or
            `packaged`.
          adapter, or peft; dtype, param_dtype, batch_tokens: those config keys.
          max_length: tokens that a prompt and its answer take together; the model's positions unless it is given.
          batch_size: answers decoded at once, or auto.
          max_batch_size: of them under auto.
          device: lm-eval's, passed over.

        Raises:
          InputError: no such model or adapter, or another argument.
        """
        super().__init__()
        given = {"path": path, "adapter": adapter}
        for name, ours in OF_HF.items():
            if given[ours] and name in others:
                raise InputError(f"model_args: {name} and {ours} are one argument; give one of them")
            given[ours] = others.pop(name, given[ours])
        if str(batch_size).split(":")[0] == "auto":
            batch_size = min(AUTO_BATCH_SIZE, max_batch_size or AUTO_BATCH_SIZE)
        for name in others:
            raise InputError(f"model_args: {name}: no such argument; there are {', '.join(ARGUMENTS)}")
        if not given["path"]:
            raise InputError("model_args: path= is needed: a Hugging Face folder, a GGUF file or an id on the hub")
        for name, number in (("batch_tokens", batch_tokens), ("batch_size", batch_size)):
            if not str(number).isdecimal() or not int(number):
                raise InputError(f"{name}={number}: set it to a number, 1 or more")
        runtime.start()
        require_one_process("lm-eval")
        stored = {"dtype": dtype, "param_dtype": param_dtype, "batch_tokens": batch_tokens}
        config = config_with({"model": str(given["path"]), "adapter": str(given["adapter"] or ""), **stored})
        self.model: Model = merged(load_model(config), config.param_dtype)
        self.tokenizer = self.model.tokenizer.backend
        self.max_length = checked_length(max_length, self.model.config.max_positions)
        self.end_ids = sorted({self.eot_token_id, *read_end_ids(self.model.path)})
        decoder, variables, mesh = self.model.decoder, self.model.variables, self.model.mesh
        self.scorer = Scorer(decoder, variables, mesh, config.batch_tokens)
        self.generator = Generator(decoder, variables, mesh, int(batch_size))

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "JaxalignLM":
        """The model of `--model_args`; `additional_config` holds lm-eval's own flags, which may not stand there too."""
        flags = {name for name, value in (additional_config or {}).items() if value is not None}
        if twice := sorted(arg_dict.keys() & flags):
            raise InputError(f"model_args: {twice[0]} is a flag of lm-eval's own: write --{twice[0]}")
        return super().create_from_arg_obj(arg_dict, additional_config)

    @property
    def eot_token_id(self) -> int:
        return self.model.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context: the begin-of-text token, or where there is none, the other."""
        return self.model.tokenizer.vocabulary.get(str(self.tokenizer.bos_token), self.eot_token_id)

    @property
    def max_gen_toks(self) -> int:
        """Tokens of an answer whose task says nothing of it, as in `hf`."""
        return 256

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval tells the tokenizers of cached requests apart by."""
        return self.model.tokenizer.fingerprint

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as one text, by the tokenizer's template; without a generation prompt the last one is open."""
        if self.tokenizer.chat_template is None:
            raise InputError(f"{self.model.path}: the tokenizer has no chat template; leave out --apply_chat_template")
        try:
            return chat_templates.render(
                conversations=[chat_history],
                chat_template=self.tokenizer.get_chat_template(),
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self.tokenizer.special_tokens_map,
            )
        except ValueError as error:
            roles = ", ".join(message["role"] for message in chat_history)
            raise InputError(f"{self.model.path}: the chat template refuses messages of {roles} ({error})") from None

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, behind those that the tokenizer opens with unless the text spells the first one out.

        Control tokens that the text spells are those tokens, as in `hf`. Unlike there nothing is put behind it, not
        even by a tokenizer that ends every text with an EOS.
        """
        if add_special_tokens is None:
            add_special_tokens = not of_lm_eval.has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        opening = self.model.tokenizer.opening if add_special_tokens else []
        return [*opening, *self.model.tokenizer.template_ids(string)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """As lm-eval has it, which takes the first token of what follows an empty context; there may be none."""
        said = [bool(before or self.tok_encode(text, False)) for before, text in (each.args for each in requests)]
        tell_of([each.args for each, some in zip(requests, said, strict=True) if not some], NOTHING_TO_SAY)
        answers = iter(super().loglikelihood(list(compress(requests, said)), disable_tqdm))
        return [next(answers) if some else (0.0, True) for some in said]

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        """The answers to requests of texts, context ids and continuation ids, either of which may be none."""
        for texts, _context, continuation in requests:
            if len(continuation) > self.max_length:
                raise InputError(
                    f"{request_text(texts)}: a continuation of {len(continuation)} tokens, "
                    f"{self.max_length} at most are read"
                )
        tell_of([texts for texts, context, _ in requests if not context], NOTHING_BEFORE)
        tell_of([texts for texts, _, continuation in requests if not continuation], NOTHING_TO_SAY)
        answers = [(0.0, True)] * len(requests)
        asked = [index for index, (_, _, continuation) in enumerate(requests) if continuation]

        def keep(place: int, score: ContinuationScore) -> None:
            answers[asked[place]] = score.log_probability, score.is_greedy
            self.cache_hook.add_partial("loglikelihood", requests[asked[place]][0], answers[asked[place]])

        pairs = [(requests[index][1] or [self.prefix_token_id], requests[index][2]) for index in asked]
        self.score(pairs, disable_tqdm, keep)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of each text the log-likelihood, read through windows that say every token once."""
        texts = [request.args[0] for request in requests]
        windows = [
            (index, make_disjoint_window(window))
            for index, text in enumerate(texts)
            for window in get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
        ]
        totals = [0.0] * len(texts)
        left = Counter(index for index, _ in windows)

        def keep(number: int, score: ContinuationScore) -> None:
            index = windows[number][0]
            totals[index] += score.log_probability
            left[index] -= 1
            if not left[index]:
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[index],), totals[index])

        self.score([window for _, window in windows], disable_tqdm, keep)
        return totals

    def score(
        self, pairs: Sequence[Sequence[list[int]]], disable_tqdm: bool, keep: Callable[[int, ContinuationScore], object]
    ) -> None:
        """Hands `keep` the score of each (context ids, continuation ids) as it is done; contexts are cut on the left
        where all but the last token of the two would be too many."""
        asked: dict[Any, list[int]] = {}
        for index, (context, continuation) in enumerate(pairs):
            pair = tuple(context[len(continuation) - self.max_length - 1 :]), tuple(continuation)
            asked.setdefault(pair, []).append(index)
        with tqdm(
            total=len(pairs), desc="Scoring continuations", unit="request", disable=disable_tqdm or None
        ) as progress:
            for found in self.scorer.continuations(self.model.variables, list(asked)):
                for pair, score in found.items():
                    for index in asked[pair]:
                        keep(index, score)
                    progress.update(len(asked[pair]))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The greedy answer to each prompt, up to the first of its stop strings; long prompts first, batch by batch.

        Of a prompt as many last tokens are read as leave room for the answer.
        """
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        tell_of([request.args[:1] for request, ids in zip(requests, prompts, strict=True) if not ids], NOTHING_BEFORE)
        prompts = [ids or [self.prefix_token_id] for ids in prompts]
        groups: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True):
            groups.setdefault(self.decoding(requests[index].args[1]), []).append(index)
        texts: dict[int, str] = {}
        size = self.generator.runner.batch_size
        with tqdm(total=len(requests), desc="Generating", unit="request", disable=disable_tqdm or None) as progress:
            for (most, until), members in groups.items():

                def has_ended(ids: list[int], until: tuple[str, ...] = until) -> bool:
                    return self.has_ended(ids, until)

                for batch in (members[first : first + size] for first in range(0, len(members), size)):
                    read = [prompts[index][most - self.max_length :] for index in batch]
                    found = self.generator(self.model.variables, read, self.end_ids, most, has_ended=has_ended)
                    for index, answer in zip(batch, found, strict=True):
                        texts[index] = self.text_until(answer.ids, until)
                        self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                    progress.update(len(batch))
        return [texts[index] for index in range(len(requests))]

    def decoding(self, generation: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
        """What a request's settings ask for: tokens at most, and the strings that end a text."""
        settings: dict[str, Any] = dict(of_lm_eval.normalize_gen_kwargs(generation, self.max_gen_toks))
        end = self.tokenizer.decode([self.eot_token_id])
        until = of_lm_eval.handle_stop_sequences(settings.pop("until"), eos=end)
        most = settings.pop("max_gen_toks")
        if settings.get("do_sample"):
            raise InputError(
                f"generation_kwargs: do_sample={generation.get('do_sample')}, "
                f"temperature={generation.get('temperature')}: texts are decoded greedily only; "
                "set do_sample=False,temperature=0 in the task or in --gen_kwargs"
            )
        if others := sorted(settings.keys() - WITHOUT_EFFECT):
            raise InputError(
                f"generation_kwargs: {others[0]}={settings[others[0]]}: no such setting of --model jaxalign"
            )
        if not 0 < most < self.max_length:
            raise InputError(
                f"generation_kwargs: max_gen_toks={most}: set it to 1 or more, below the model's {self.max_length}"
            )
        return most, tuple(stop for stop in until if stop)  # lm-eval passes over an empty string, too

    def has_ended(self, ids: list[int], until: Sequence[str]) -> bool:
        """Whether the text holds one of the strings; special tokens count as they are spelt."""
        text = self.tokenizer.decode(ids)
        return any(stop in text for stop in until)

    def text_until(self, ids: list[int], until: Sequence[str]) -> str:
        """The text to the token with which it first held one of the strings, less that string and what follows it."""
        end = bisect_left(range(len(ids)), True, key=lambda count: self.has_ended(ids[:count], until))
        text = self.tokenizer.decode(ids[:end], skip_special_tokens=True)
        return of_lm_eval.postprocess_generated_text(text, list(until), None)


def tell_of(requests: Sequence[Sequence[str]], what: str) -> None:
    """Says of requests that something is odd, and which is the first."""
    if requests:
        log_status(
            f"warning: {what} (of such requests there are {len(requests)}, the first is {request_text(requests[0])})"
        )


def request_text(texts: Sequence[str]) -> str:
    """A request by its texts: the end of what stands before, the beginning of what follows."""
    context, *continuation = texts
    return " -> ".join([repr(context[-60:]), *(repr(text[:60]) for text in continuation)])


def checked_length(given: int | None, positions: int) -> int:
    """The tokens that a prompt and its answer take together; `positions`: those of the model, 0 where it names none."""
    longest = positions or NO_MAXIMUM
    if given is None:
        return longest
    if not isinstance(given, int) or given < 2 or 0 < positions < given:
        raise InputError(f"model_args: max_length={given}: set it to a number from 2 to the model's {longest}")
    return given


def main() -> int:
    """lm-eval's command; what our model refuses is one line on stderr and exit code 2."""
    open_standard_streams()
    try:
        cli_evaluate()
        sys.stdout.flush()
    except (InputError, OSError) as error:
        return complain(str(error), 2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
