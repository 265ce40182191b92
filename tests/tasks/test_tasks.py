"""Which task a model is of, what a task that does not fit is told, and the numbers that tasks compare by."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import jaccard_score

from coldpress.data.batches.sounds import features, resampled, voice
from coldpress.errors import ColdpressError
from coldpress.measuring.agreement import of_boxes, of_maps, of_scores
from coldpress.models.text_part import is_multimodal
from coldpress.parts.task import Criterion, require_task, task_of_class, task_of_settings

#: tables of transformers -> our task
TABLES = {
    "MODEL_FOR_SEQUENCE_CLASSIFICATION": "TextClassification",
    "MODEL_FOR_TOKEN_CLASSIFICATION": "TokenClassification",
    "MODEL_FOR_QUESTION_ANSWERING": "QuestionAnswering",
    "MODEL_FOR_MULTIPLE_CHOICE": "MultipleChoice",
    "MODEL_FOR_AUDIO_CLASSIFICATION": "AudioClassification",
    "MODEL_FOR_OBJECT_DETECTION": "ObjectDetection",
    "MODEL_FOR_SEMANTIC_SEGMENTATION": "ImageSegmentation",
    "MODEL_FOR_UNIVERSAL_SEGMENTATION": "ImageSegmentation",
    "MODEL_FOR_CTC": "SpeechRecognition",
}


@pytest.mark.parametrize("table", TABLES)
def test_classes_have_the_task_that_transformers_lists_them_for(table):
    from transformers.models.auto import modeling_auto

    found = getattr(modeling_auto, f"{table}_MAPPING_NAMES")
    for name in found.values():
        task = task_of_class(name) if isinstance(name, str) else None
        assert task is None or type(task).__name__ == TABLES[table], name
    assert sum(task_of_class(str(name)) is not None for name in found.values()) > 0.8 * len(found)


def settings(architecture: str, **more: object) -> dict[str, object]:
    return {"architectures": [architecture], **more}


@pytest.mark.parametrize(
    ("asked", "own"),
    [
        ("text-classification", settings("BertForSequenceClassification")),
        ("text_classification", settings("BertForSequenceClassification")),
        ("fill-mask", settings("BertForMaskedLM")),
        ("text-generation-with-past", settings("LlamaForCausalLM")),
        ("translation", settings("MarianMTModel", is_encoder_decoder=True)),
        ("automatic-speech-recognition", settings("WhisperForConditionalGeneration", is_encoder_decoder=True)),
    ],
)
def test_a_task_is_called_as_its_file_as_hubs_call_it_and_as_exporters_do(asked, own):
    require_task(asked, own)


def test_a_task_that_does_not_fit_the_model_is_refused_with_what_would():
    with pytest.raises(ColdpressError, match="BertForTokenClassification is for token classification") as caught:
        require_task("text-classification", settings("BertForTokenClassification"))
    assert caught.value.exit_code == 2
    assert "--task token-classification" in caught.value.hint and "ForSequenceClassification" in caught.value.hint
    with pytest.raises(ColdpressError, match="no task 'text-clasification'") as caught:
        require_task("text-clasification", settings("BertForSequenceClassification"))
    assert "text-classification" in caught.value.hint


def test_two_encoders_are_no_text_model_with_senses():
    clip = {"text_config": {"model_type": "clip_text_model"}, "vision_config": {"model_type": "clip_vision_model"}}
    assert not is_multimodal(clip)
    task = task_of_settings({**clip, "architectures": ["CLIPModel"]})
    assert task is not None and task.pipeline == "zero-shot-image-classification"
    assert is_multimodal({"text_config": {"model_type": "gemma3_text"}, "vision_config": {}})


def test_a_share_breaks_its_limit_when_chance_does_not_explain_it():
    share = Criterion("same", "", "", "higher", "share", {"int8": 0.95}, is_share=True)
    for answers in (60, 200, 1000):
        lowest = next(n for n in range(answers) if not share.broken(n / answers, 0.95, answers))
        # one that just keeps the limit comes out lower so seldom, and not much more seldom
        assert binom.cdf(lowest - 1, answers, 0.95) < 0.05 < binom.cdf(lowest + answers // 30, answers, 0.95)
    assert "of 60 answers" in share.broken(0.8, 0.95, 60)
    assert share.broken(0.94, 0.95) and not share.broken(0.95, 0.95)
    assert share.broken(float("nan"), 0.95, 60)


def test_flat_scores_with_another_label_do_not_agree():
    flat = [np.linspace(0, 1e-3, 300)] * 4
    assert of_scores(flat, [row[::-1] for row in flat])["label_agreement"] == 0


def test_boxes_are_held_against_those_of_their_class_in_any_order():
    # middle, width, height; then scores of two classes
    source = np.array([[0.5, 0.5, 0.4, 0.4, 5, 0], [0.2, 0.2, 0.2, 0.2, 0, 4], [0.8, 0.8, 0.1, 0.1, 1, 0]])
    assert of_boxes([source], [source[::-1]], 2) == {"box_overlap": 1.0, "object_agreement": 1.0, "compared": 2}
    moved = source.copy()
    moved[0, 0] += 0.1  # overlaps by 0.3 x 0.4 of 0.2
    moved[1, 4:] = [4, 0]  # another class in the same place
    found = of_boxes([source], [moved], 2)
    assert found["box_overlap"] == pytest.approx((0.12 / 0.20) / 2)
    assert found["object_agreement"] == 0.5


def test_regions_overlap_as_scikit_learn_has_it():
    random = np.random.default_rng(0)
    source = [random.standard_normal((4, 9, 7)) for _ in range(3)]
    model = [one + 0.7 * random.standard_normal(one.shape) for one in source]
    labels = [np.concatenate([one.argmax(0).ravel() for one in maps]) for maps in (source, model)]
    found = of_maps(source, model)
    assert found["overlap"] == pytest.approx(jaccard_score(*labels, average="macro"))
    assert found["label_agreement"] == pytest.approx((labels[0] == labels[1]).mean())


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_a_tone_of_another_rate_is_the_same_tone(rate):
    def tone(rate: int) -> np.ndarray:
        return np.sin(2 * np.pi * 440 * np.arange(rate) / rate)

    found = resampled(tone(rate), rate, 16000)
    assert len(found) == 16000
    assert np.abs(found[800:-800] - tone(16000)[800:-800]).max() < 0.01


def test_sounds_longer_than_a_window_are_not_cut():
    from transformers import WhisperFeatureExtractor

    extractor, random = WhisperFeatureExtractor(feature_size=8), np.random.default_rng(0)
    short = features([voice(0.5, 16000, random)], extractor)
    assert short["input_features"].shape == (1, 8, 3000)
    long = features([np.tile(voice(0.5, 16000, random), 70)], extractor)
    assert long["input_features"].shape == (1, 8, 3500) and long["attention_mask"].sum() == 3500
