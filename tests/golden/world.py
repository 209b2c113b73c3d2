"""Models, tokenizers and files for the golden runs, made of nothing but other libraries and the shipped question set.

Nothing here imports an inner module of the package: those may move, the outputs may not.
"""

import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import jaxalign

MINI = next(Path(jaxalign.__file__).parent.rglob("exemplars.json")).parent
STUDY_WORDS = Path(__file__).with_name("study_words.json")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONFIGS = Path(__file__).parents[2] / "configs"
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
}


def make_world(root: Path) -> None:
    """Everything that the golden commands read, in a new folder `root`."""
    root.mkdir()
    byte_level, pieces = byte_level_tokenizer(), sentence_piece_tokenizer()
    llama = transformers.LlamaConfig(**SIZES, vocab_size=len(byte_level), num_hidden_layers=3)
    save_model(root / "llama", transformers.LlamaForCausalLM(llama), byte_level)
    write_gguf(root / "llama.gguf", transformers.LlamaForCausalLM(llama), byte_level)
    layers = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    gemma = transformers.Gemma3TextConfig(
        **SIZES | {"hidden_size": 64, "intermediate_size": 128},  # whole blocks of nf4
        vocab_size=len(pieces),
        num_hidden_layers=len(layers),
        layer_types=layers,
        head_dim=16,
        sliding_window=24,
        query_pre_attn_scalar=24,
        tie_word_embeddings=True,
        hidden_activation="gelu_pytorch_tanh",
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    save_model(root / "gemma", transformers.Gemma3ForCausalLM(gemma), pieces)
    (root / "toy").mkdir()
    llama.save_pretrained(root / "toy")
    write_pair_files(root)
    write_math_problems(root / "qalign")
    write_clone(root / "clone")
    write_config(root / "two_stages.py", '({"build.sources": "zh"}, {"build.control": "answers", "steps": 2})')


def mini_texts() -> list[str]:
    """All texts of the shipped set's emotion files, file by file."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted((MINI / "ap_emotion").glob("*.json"))]
    return [row["input"] for file in rows for row in file] + [row["answer"] for row in rows[0]]


def byte_level_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE with no BOS and with Qwen's marks of a conversation."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=560,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(mini_texts(), trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def sentence_piece_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """BPE in SentencePiece's style, with ▁ for a space, byte fallback and a BOS, as Gemma's."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=500, limit_alphabet=220, show_progress=False)
    trained.train_from_iterator(mini_texts(), trainer)
    learnt = json.loads(trained.to_str())["model"]
    entries = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\n", *learnt["vocab"]]
    backend = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(dict.fromkeys(entries))},
            merges=[tuple(pair) for pair in learnt["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<pad>", "<s>", "</s>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def draw(model: torch.nn.Module) -> None:
    """Sets every parameter at random, norms and biases among them."""
    random = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            values = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
            centre = 1.0 if name.endswith("norm.weight") and "Gemma" not in type(model).__name__ else 0.0
            parameter.copy_(torch.from_numpy(values * (0.3 if parameter.ndim == 1 else 0.25) + np.float32(centre)))


def save_model(folder: Path, model: Any, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """A Hugging Face folder, float32."""
    draw(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_gguf(path: Path, model: Any, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    """A Llama of byte-level BPE as llama.cpp's converter writes it, matrices of whole blocks as Q8_0."""
    draw(model)
    config, vocabulary = model.config, tokenizer.get_vocab()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    parts |= {f"self_attn.{name}_proj": f"attn_{name}" for name in "qkv"} | {"self_attn.o_proj": "attn_output"}
    parts |= {f"mlp.{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
    for name, tensor in model.state_dict().items():
        module, array = name.removesuffix(".weight"), tensor.numpy().copy()
        if module.startswith("model.layers."):
            _, _, layer, module = module.split(".", 3)
            if module in ("self_attn.q_proj", "self_attn.k_proj"):  # llama.cpp's order of the two halves
                heads = config.num_attention_heads if "q_proj" in module else config.num_key_value_heads
                array = array.reshape(heads, 2, array.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(array.shape)
            written = f"blk.{layer}.{parts[module]}.weight"
        else:
            written = f"{names[module]}.weight"
        if array.ndim == 1 or array.shape[-1] % 32:
            writer.add_tensor(written, array)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(written, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mini_rows(language: str, stop: int) -> list[str]:
    """Texts of the shipped set's emotion train file in one language."""
    (file,) = (MINI / "ap_emotion").glob(f"emotion_{language}*_train.json")
    return [row["input"] for row in json.loads(file.read_text(encoding="utf-8"))[:stop]]


def write_pair_files(root: Path) -> None:
    """The same sort of pairs in every form that `train` takes without another library: my_pairs.*, train.*."""
    german, thai, english = mini_rows("de", 12), mini_rows("th", 12), mini_rows("en", 12)
    with (root / "my_pairs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "target", "source_language", "target_language"])
        rows.writerows([text, english[index], "de", "en"] for index, text in enumerate(german))
    write_lines(root / "my_pairs.jsonl", ({"question": text, "answer": text[::-1]} for text in english))
    alpaca = [
        {"instruction": "Translate the input from Thai to English:", "input": text, "output": english[index]}
        for index, text in enumerate(thai)
    ]
    (root / "alpaca.json").write_text(json.dumps(alpaca), encoding="utf-8")
    talk = [
        {
            "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": english[index]}],
            "source_language": "de",
            "target_language": "en",
        }
        for index, text in enumerate(german)
    ]
    (root / "sharegpt.json").write_text(json.dumps(talk), encoding="utf-8")
    (root / "train.de").write_text("".join(f"{text}\n" for text in german), encoding="utf-8")
    (root / "train.en").write_text("".join(f"{text}\n" for text in english), encoding="utf-8")
    (root / "bad.json").write_text(json.dumps([{"source": "x"}, {"input": "", "answer": 3}]), encoding="utf-8")


def write_lines(file: str | Path, rows: Iterable[Any]) -> None:
    """JSON lines."""
    Path(file).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_math_problems(folder: Path) -> None:
    """Three problems of MGSM and MSVAMP in three languages, made up."""
    for name in ("mgsm", "msvamp"):
        (folder / name).mkdir(parents=True)
    for language, code in (("English", "en"), ("German", "de"), ("Chinese", "zh")):
        texts = [f"{text} {index} + {index}?" for index, text in enumerate(mini_rows(code, 3))]
        write_lines(
            folder / "mgsm" / f"mgsm_{language}.json",
            ({"query": text, "response": f"{2 * index:,}"} for index, text in enumerate(texts)),
        )
        write_lines(
            folder / "msvamp" / f"test_{language}.json",
            ({"m_query": text, "equation": "x", "response": f"{2 * i}.0"} for i, text in enumerate(texts)),
        )


def write_config(file: Path, stages: str) -> None:
    """A config file of several stages over the shipped base."""
    file.write_text(
        "import importlib.util\n\n"
        f"spec = importlib.util.spec_from_file_location('base', {str(CONFIGS / 'base.py')!r})\n"
        "base = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(base)\n\n\n"
        f"def get_config():\n    config = base.get_config()\n    config.stages = {stages}\n    return config\n"
    )


SCRIPTS = {
    "emotion_eval_2shot_enout.py": ("emotion", "english"),
    "emotion_eval_2shot.py": ("emotion", "in_language"),
    "emotion_eval_2shot_irrelative.py": ("emotion", "irrelevant"),
    "snli_eval_6shot_enout.py": ("snli", "english"),
    "paws_eval_4shot_enout.py": ("paws", "english"),
    "zsm_emotion_2shot.py": ("emotion", "in_language"),
}
ANSWERS = {
    "emotion": {"positive_answers": "positive", "negative_answers": "negative"},
    "snli": {"positive_answers": "entailment", "neutral_answers": "neutral", "negative_answers": "contradiction"},
    "paws": {"positive_answers": "same", "negative_answers": "different"},
}


def write_clone(folder: Path) -> None:
    """What `data import` reads of a clone of the study's repository: scripts and test files, texts made up."""
    tasks = json.loads(STUDY_WORDS.read_text(encoding="utf-8"))
    folder.mkdir()
    for file, (name, variant) in SCRIPTS.items():
        (folder / file).write_text(study_script(name, tasks[name], variant), encoding="utf-8")
    for name, task in tasks.items():
        data = folder / "data" / task["folder"]
        data.mkdir(parents=True)
        for language, entry in task["languages"].items():
            words = entry["words"] | entry.get("file_words", {})
            rows = [
                {field: f"{language} {field} {turn}" for field in task["fields"]} | {"answer": words[label]}
                for turn in range(2)
                for label in task["classes"]
            ]
            (data / f"{name}_{language}{len(rows)}_test.json").write_text(json.dumps(rows), encoding="utf-8")


def study_script(name: str, task: Any, variant: str) -> str:
    """Python of the study's structure, never to be run. Two slips: a Chinese cue of SNLI, spaces after an answer."""
    prefixes, queries = {}, []
    loop = ["i"] if len(task["fields"]) == 1 else ["p", "h"]
    for language, entry in task["languages"].items():
        cues = entry["cues"]
        words = task["languages"]["en" if variant == "english" else language]["words"]
        if variant == "irrelevant":
            words = {"positive": "ox", "negative": "horse"}
        lines = []
        for label in task["classes"]:
            for field, own in zip(task["exemplar_fields"], task["fields"], strict=True):
                slip = (name, language, field, label) == ("snli", "zh", "premise", "neutral")
                lines.append(f"{'前提：' if slip else cues[own]}{language} says: it's {label}, {field}")
            trailing = "   " if (language, label) == ("en", "positive") else ""
            lines.append(f'{cues["answer"]}"{words[label]}"{trailing}')
        prefixes[language] = "\n".join(lines)
        parts = [f"prompt_prefix[{language!r}]"]
        for own, variable in zip(task["fields"], loop, strict=True):
            parts += [repr("\n" + cues[own]), variable]
        query = " + ".join([*parts, repr("\n" + cues["answer"] + '"')])
        queries += [f"    {'elif' if queries else 'if'} target_lang == {language!r}:"]
        queries += [f"        input = [{query} for {', '.join(loop)} in rows]"]
    tables = []
    for variable, label in ANSWERS[name].items():
        table = {language: entry["words"][label] for language, entry in task["languages"].items()}
        if name == "paws":
            table = {language: word * (language == "en") for language, word in table.items()}
        tables.append(f"{variable} = {table!r}")
    tables.append("positive_answers_irrelative = {'en': 'ox', 'de': 'Ochse'}")
    tables.append("negative_answers_irrelative = {'en': 'horse', 'de': 'Pferd'}")
    return "\n".join([f"prompt_prefix = {prefixes!r}", *tables, "for step, inputs in enumerate(samples):", *queries])
