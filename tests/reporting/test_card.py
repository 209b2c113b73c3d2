"""The model card: rendered by a Markdown parser, and hostile texts in what it is filled from."""

import html
import json
from pathlib import Path

import gguf
import pytest
import yaml
from markdown_it import MarkdownIt

from jaxalign.reporting.card import model_card
from jaxalign.reporting.folders import TrainingRun
from jaxalign.reporting.words import code_block, code_span, markdown_text
from jaxalign.verbs.export import stated_licence

HOSTILE = [
    "<script>alert(1)</script>",
    "a | b | c",
    "[x](javascript:alert(1))",
    "![x](http://example.org/x.png)",
    "`` ` ``",
    "```\n# heading",
    "\n\n# heading",
    "---\nlicense: mit",
    "*bold* _it_ ~~no~~ \\",
    "a\x00b\u202eevil",
    "&lt;b&gt; &amp;",
    "https://example.org www.example.org",
]


def run_of(text: str) -> TrainingRun:
    """A run in which every text is this one."""
    document = {
        **{"model": text, "files": [text], "template": text, "command": f"jaxalign train {text}"},
        **{"records": 0, "pairs": 90, "heldout_pairs": 5, "dropped": 0, "cut": 0, "steps": 10},
        **{"trainable_parameters": 1234, "versions": {"jaxalign": text}},
        "languages": {"sources": [text], "targets": ["en"], "seen": ["en", text]},
        "config": {
            "tune": "adapter",
            "lora": {"rank": 8, "targets": text},
            "optimizer": {"learning_rate": 5e-5},
            "loss": {"reduction": text},
            "batch": {"length": 128},
            **{"epochs": 3, "heldout": 0.05, "seed": 42, "dtype": "float32", "param_dtype": "float32"},
        },
    }
    return TrainingRun(Path("run"), document, [(1, 2.0)], [(0, 1.736), (100, 0.961)])


def card_of(text: str, **changes) -> str:
    facts = {"is_adapter": True, "licence": text, "check": text, "command": text} | changes
    return model_card(text, run_of(text), [], text, None, **facts)


def body_and_facts(card: str):
    head, front, body = card.split("---\n", 2)
    assert head == ""
    return body, yaml.safe_load(front)


def shown(text: str) -> str:
    """The text as a reader should see it: on one line, hidden characters named."""
    return " ".join(text.replace("\x00", "[U+0000]").replace("\u202e", "[U+202E]").split())


def rendered(card: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(body_and_facts(card)[0])


def test_it_says_what_was_done():
    body, facts = body_and_facts(card_of("de", licence="apache-2.0", check="holds", command="jaxalign export run"))
    assert facts == {
        "library_name": "peft",
        "language": ["en", "de"],
        "license": "apache-2.0",
        "tags": ["jaxalign", "question-translation-alignment"],
    }
    for said in ("90, 5 of them held out", "1.736 at step 0, 0.961 at step 100", "| lora.rank | 8 |", "apache-2.0"):
        assert said in body
    assert "jaxalign train de\njaxalign export run" in body
    assert "Not evaluated" in body and "PeftModel" in body
    assert "PeftModel" not in card_of("de", is_adapter=False)


def test_pairs_from_python_are_not_called_built():
    run = run_of("de")
    run = TrainingRun(run.folder, {**run.document, "files": [], "records": 12}, [], [])
    card = model_card("x", run, [], "de", None, is_adapter=True, licence=None, check="", command="")
    assert "- given from Python: 12 pairs" in card and "built from" not in card and "- files" not in card


def test_a_base_on_the_hub_is_named_as_the_hub_reads_it():
    card = model_card("x", run_of("de"), [], "org/model", "c0ffee", is_adapter=True, licence=None, check="", command="")
    body, facts = body_and_facts(card)
    assert facts["base_model"] == "org/model" and "license" not in facts
    assert 'from_pretrained("org/model", revision="c0ffee")' in body and "states no licence" in body


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_stay_texts(text):
    plain, hostile = rendered(card_of("harmless")), rendered(card_of(text))
    for tag in ("h1", "h2", "li", "tr", "td", "pre", "p>", "a", "img", "em", "strong", "s>", "script", "hr"):
        assert hostile.count(f"<{tag}") == plain.count(f"<{tag}"), tag
    assert "\x00" not in hostile and "\u202e" not in hostile
    assert f"<td>lora.targets</td>\n<td>{html.escape(shown(text))}</td>" in hostile
    facts = body_and_facts(card_of(text))[1]
    assert facts["license"] == text and facts["language"] == ["en", text]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_was_escaped_is_shown(text):
    """A parser gives the text back."""
    parts = MarkdownIt("gfm-like", {"linkify": False}).parseInline(markdown_text(text))[0].children or []
    assert {part.type for part in parts} <= {"text", "text_special"}
    assert "".join(part.content for part in parts) == shown(text)
    (block,) = MarkdownIt().parse(code_block(text, "sh"))
    assert block.type == "fence" and block.info == "sh"


@pytest.mark.parametrize(
    ("text", "span"), [("plain", "`plain`"), ("a`b", "`` a`b ``"), ("``", "``` `` ```"), ("a\n b", "`a b`")]
)
def test_code_spans(text, span):
    assert code_span(text) == span


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("README.md", "---\nlicense: [\n---\n", None),
        ("README.md", "---\nlicense:\n- a\n---\n", None),
        ("README.md", "# A model\nlicense: mit\n", None),
        ("LICENSE.txt", "Some terms", "other (LICENSE.txt)"),
        ("config.json", json.dumps({"license": "mit"}), None),
    ],
)
def test_the_licence_of_a_folder(tmp_path, name, content, licence):
    (tmp_path / name).write_text(content)
    assert stated_licence(tmp_path) == licence
    assert stated_licence(tmp_path / "absent") is None


@pytest.mark.parametrize("licence", ["gemma", None])
def test_the_licence_of_a_gguf_file(tmp_path, licence):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    if licence is not None:
        writer.add_license(licence)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert stated_licence(tmp_path / "model.gguf") == licence
