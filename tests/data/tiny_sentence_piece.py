"""A SentencePiece model small enough to know by heart, as the file that its package writes."""

from collections.abc import Mapping, Sequence

from jaxalign.sentence_piece import empty_model

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, _, BYTE = range(1, 7)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *map(chr, range(0x21, 0x7F)), "é", "積", "极"]
MERGED = ["th", "▁th", "▁the", "▁▁", "▁▁▁▁", "in", "er", "he", "ing", "==", "====", "</", "s>", "<s", "nd", "▁a"]
"""Best first. Out of `</` and `s>` the control token's spelling could be merged."""


def sentence_piece_model(
    merged: Sequence[str] = MERGED, extra: Sequence[tuple[str, int]] = (), model_type: int = 2, **rules: object
) -> bytes:
    """The bytes of a BPE model that adds a space before a text and leaves all others.

    Merged pieces stand in another order than that of their scores, which decide. extra: pieces and their types at the
    end; model_type: 2 is BPE; rules: of the normaliser.
    """
    model = empty_model()
    controls = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    scores: Mapping[str, float] = {piece: -float(rank) for rank, piece in enumerate(merged, start=1)}
    pieces = [*controls.items(), *((byte, BYTE) for byte in BYTES)]
    pieces += [(piece, NORMAL) for piece in [*sorted(merged), *LETTERS]] + list(extra)
    for piece, kind in pieces:
        model.pieces.add(piece=piece, type=kind, score=scores.get(piece, -1000.0 if kind == NORMAL else 0.0))
    trainer = {"model_type": model_type, "byte_fallback": True, "unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}
    for key, value in (trainer | {"vocab_size": len(pieces)}).items():
        setattr(model.trainer_spec, key, value)
    for key, value in ({"name": "identity", "remove_extra_whitespaces": False} | rules).items():
        setattr(model.normalizer_spec, key, value)
    return model.SerializeToString()
