from __future__ import annotations

import ast

import pytest
import yaml

from coldpress.report.card import RUN_GENERATION, base_model, card


def front_matter(text: str) -> dict:
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_front_matter_names_the_source(make_report):
    found = front_matter(card(make_report()))
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found["base_model_relation"] == "quantized"
    assert found["library_name"] == "onnxruntime-genai" and found["pipeline_tag"] == "text-generation"
    assert found["tags"] == ["onnx", "coldpress", "int4", "cpu"]


@pytest.mark.parametrize(
    "source", [{"name": "out/finetuned", "origin": "folder"}, {"name": "a b/c", "origin": "hub"}, {}]
)
def test_a_path_is_no_hub_name(make_report, source):
    report = make_report(source=source)
    assert base_model(report) is None
    assert "base_model" not in front_matter(card(report))


def test_card_carries_numbers_verdict_command_and_licence(make_report):
    text = card(make_report())
    for expected in (
        "| Perplexity | 20.91 | 21.34 (+2.1 %) |",
        "**Verified.**",
        "98.2 MB",
        "olive auto-opt",
        "source model",
    ):
        assert expected in text


def test_unverified_is_said(make_report):
    assert "**Not verified.**" in card(make_report(verdict="unverified"))
    assert "not measured" in card({})


def test_text_from_the_report_stays_text(make_report, hostile):
    text = card(
        make_report(
            reasons=[hostile, "# heading\n## other"],
            command="echo '```'\n```\n# not a heading",
            versions={"a|b": "<i>"},
        )
    )
    assert "<script" not in text.replace("\\<script", "")
    assert "````bash\necho" in text
    assert "\\# heading \\#\\# other" in text


def test_code_is_for_the_kind_of_model(make_report):
    encoder = make_report(source={"name": "bert", "architecture": "BertModel"})
    assert "InferenceSession" in card(encoder)
    assert front_matter(card(encoder))["pipeline_tag"] == "feature-extraction"
    assert RUN_GENERATION in card(make_report())
    ast.parse(RUN_GENERATION)
