"""Tokenizers small enough to know by heart: one in SentencePiece's style, one byte-level BPE."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from jaxalign.data.pairs import QuestionPair
from jaxalign.data.tokenizer import Tokenizer as View
from jaxalign.data.tokenizer import render_all

BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = [chr(code) for code in range(0x20, 0x7F)]


def sentencepiece_style(
    pieces: tuple[str, ...] = (), merges: tuple[tuple[str, str], ...] = ()
) -> PreTrainedTokenizerFast:
    """BPE over characters with ▁ for a space, byte fallback, and a BOS in ordinary calls, as Mistral's.

    pieces: entries beside ASCII, ▁ and the byte pieces; merges: pairs whose results become entries too.
    """
    vocabulary = ["<unk>", "<s>", "</s>", *BYTE_PIECES, "▁", *LETTERS, *pieces, *("".join(pair) for pair in merges)]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(dict.fromkeys(vocabulary))},
            merges=list(merges),
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def byte_level(merges: tuple[tuple[str, str], ...] = (), special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE with no BOS, as Qwen's: GPT-2's byte alphabet, the merges, the special tokens."""
    vocabulary = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE(vocab={piece: index for index, piece in enumerate(vocabulary)}, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in ("<|endoftext|>", *special)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def render(pair: QuestionPair, template: str, tokenizer: View) -> tuple[list[int], list[int]]:
    """The token ids of one pair's prompt and response."""
    [rendered] = render_all([pair], template, tokenizer)
    return rendered
