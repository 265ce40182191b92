"""Images, arrays and sounds become what the model takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from coldpress.errors import ColdpressError
from tests.sounds import write_sound
from tests.tiny_graphs import write_linear


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of single-coloured images: red ones of 8 x 6 pixels, blue ones of 6 x 8."""
    from PIL import Image

    for name, colour, size, count in (("red", (255, 0, 0), (8, 6), 3), ("blue", (0, 0, 255), (6, 8), 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, colour).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def model(tmp_path: Path, *shape: int) -> Path:
    return write_linear(tmp_path / "model", np.zeros((int(np.prod(shape)), 2)), ["N", *shape])


def test_images_are_resized_cropped_and_normalised_and_classes_come_in_turn(batches, photos, tmp_path):
    data = {
        "folder": str(photos),
        "size": 6,
        "crop": 4,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.25],
        "batch_size": 4,
    }
    [batch] = batches(model(tmp_path, 3, 4, 4), "images", **data)
    pixels = batch.inputs["pixel_values"]
    assert pixels.shape == (4, 3, 4, 4) and pixels.dtype == np.float32
    assert batch.labels.tolist() == [0, 1, 1, 1]  # blue, red, then the rest
    assert np.allclose(pixels[0, :, 0, 0], [-1, -1, 2]) and np.allclose(pixels[1, :, 0, 0], [1, -1, -2])


def test_what_the_preprocessor_says_is_done(batches, photos, tmp_path):
    folder = model(tmp_path, 3, 5, 5)
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": 5, "width": 5},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "red", "1": "blue"}}))
    [batch] = batches(folder, "images", folder=str(photos), batch_size=4)
    assert batch.inputs["pixel_values"].shape == (4, 3, 5, 5)
    assert batch.labels.tolist() == [1, 0, 0, 0], "the model's own numbers"
    assert batch.inputs["pixel_values"].max() == 1


def test_channels_go_where_the_model_has_them(batches, photos, tmp_path):
    [batch] = batches(model(tmp_path, 6, 6, 3), "images", folder=str(photos), size=[6, 6], batch_size=4)
    assert batch.inputs["pixel_values"].shape == (4, 6, 6, 3)
    [grey] = batches(model(tmp_path, 1, 6, 6), "images", folder=str(photos), size=[6, 6], batch_size=4)
    assert grey.inputs["pixel_values"].shape == (4, 1, 6, 6)


@pytest.mark.parametrize(
    ("mode", "value", "shown"),
    [("RGBA", (255, 0, 0, 255), (1, 0, 0)), ("L", 128, (0.5,) * 3), ("I;16", 65535 // 2, (0.5,) * 3), ("1", 1, (1,) * 3),
     ("F", 0.5, (0.5,) * 3), ("CMYK", (0, 255, 255, 0), (1, 0, 0))],
)  # fmt: skip
def test_an_image_of_every_mode_is_read(batches, tmp_path, mode, value, shown):
    from PIL import Image

    (tmp_path / "images").mkdir()
    Image.new(mode, (5, 3), value).save(tmp_path / "images" / ("one.tif" if mode in ("F", "CMYK") else "one.png"))
    [batch] = batches(model(tmp_path, 3, 4, 4), "images", folder=str(tmp_path / "images"), size=[4, 4])
    assert np.allclose(batch.inputs["pixel_values"][0, :, 1, 1], shown, atol=0.01)


def test_an_image_is_turned_as_its_camera_noted(batches, tmp_path):
    from PIL import Image

    (tmp_path / "images").mkdir()
    image = Image.fromarray(np.array([[0, 255]], np.uint8).repeat(4, 0).repeat(4, 1))  # black on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right: black comes to lie above
    image.save(tmp_path / "images" / "one.png", exif=exif)
    [batch] = batches(model(tmp_path, 3, 8, 4), "images", folder=str(tmp_path / "images"))
    assert batch.inputs["pixel_values"][0, 0, 0].max() == 0 and batch.inputs["pixel_values"][0, 0, -1].min() == 1


def test_a_network_that_sees_needs_to_say_how(batches, photos, tmp_path):
    folder = model(tmp_path, 3, 6, 6)
    (folder / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"], "image_size": 6}))
    with pytest.raises(ColdpressError, match=r"has no preprocessor_config\.json") as caught:
        batches(folder, "images", folder=str(photos))
    assert "mean and std" in caught.value.hint
    said = {"size": [6, 6], "mean": [0.5] * 3, "std": [0.5] * 3}
    assert batches(folder, "images", folder=str(photos), **said)[0].inputs["pixel_values"].shape == (1, 3, 6, 6)


def test_images_without_classes_have_no_labels(batches, photos, tmp_path):
    found = batches(model(tmp_path, 3, 6, 8), "images", folder=str(photos / "red"))
    assert [batch.labels for batch in found] == [None] * 3


def test_folders_of_images_that_make_no_sense_are_refused(batches, photos, tmp_path):
    folder = model(tmp_path, 3, 6, 6)
    with pytest.raises(ColdpressError, match="needs a folder"):
        batches(folder, "images")
    with pytest.raises(ColdpressError, match="there is no folder"):
        batches(folder, "images", folder=str(tmp_path / "nowhere"))
    with pytest.raises(ColdpressError, match="cannot be made a batch"):
        batches(folder, "images", folder=str(photos), batch_size=4)
    (photos / "red" / "broken.png").write_bytes(b"no image")
    with pytest.raises(ColdpressError, match=r"broken.png cannot be read as an image"):
        batches(folder, "images", folder=str(photos), size=[6, 6])
    (photos / "empty").mkdir()
    with pytest.raises(ColdpressError, match="there are no images in"):
        batches(folder, "images", folder=str(photos / "empty"))
    with pytest.raises(ColdpressError, match="mean and std go together"):
        batches(folder, "images", folder=str(photos), mean=[0.5])
    with pytest.raises(ColdpressError, match="the label 'blue' is not among red, green"):
        batches(folder, "images", folder=str(photos), label_names=["red", "green"])


def test_arrays_are_inputs_by_name_with_labels_beside_them(batches, tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.savez(tmp_path / "set.npz", pixels=values, target=np.array([0, 1, 0, 1, 0, 1]))
    found = batches(
        model(tmp_path, 2),
        "arrays",
        file=str(tmp_path / "set.npz"),
        labels="target",
        batch_size=4,
        shuffle=True,
        seed=1,
    )
    assert [batch.size for batch in found] == [4, 2]
    rows = np.concatenate([batch.inputs["pixels"] for batch in found])
    labels = np.concatenate([batch.labels for batch in found])
    assert rows.tolist() != values.tolist() and sorted(rows.tolist()) == values.tolist()
    assert ((rows[:, 0] / 2) % 2 == labels).all()


def test_npy_files_and_images_in_arrays(batches, tmp_path):
    np.save(tmp_path / "x.npy", np.full((2, 4, 4), 255, np.uint8))
    np.save(tmp_path / "y.npy", np.array(["cat", "dog"]))
    data = {"file": str(tmp_path / "x.npy"), "labels": str(tmp_path / "y.npy"), "label_names": ["dog", "cat"]}
    [plain] = batches(model(tmp_path, 4, 4), "arrays", **data, batch_size=2)
    assert plain.inputs["x"].dtype == np.uint8 and plain.labels.tolist() == [1, 0]
    [scaled] = batches(model(tmp_path, 1, 2, 2), "arrays", **data, batch_size=2, as_images=True, size=2)
    assert scaled.inputs["pixel_values"].tolist() == np.ones((2, 1, 2, 2)).tolist()


def test_arrays_that_make_no_sense_are_refused(batches, tmp_path):
    folder = model(tmp_path, 2)
    np.savez(tmp_path / "set.npz", pixels=np.zeros((3, 2)), target=np.zeros(2))
    file = str(tmp_path / "set.npz")
    with pytest.raises(ColdpressError, match="no array 'targets'; found: pixels, target") as caught:
        batches(folder, "arrays", file=file, labels="targets")
    assert "did you mean 'target'" in caught.value.hint
    with pytest.raises(ColdpressError, match="as many samples"):
        batches(folder, "arrays", file=file, labels="target")
    with pytest.raises(ColdpressError, match="have no effect on plain arrays"):
        batches(folder, "arrays", file=file, mean=[0.5], std=[0.5])
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object))
    with pytest.raises(ColdpressError, match="Python objects"):
        batches(folder, "arrays", file=str(tmp_path / "objects.npy"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(ColdpressError, match=r"text.npz is no .npz file"):
        batches(folder, "arrays", file=str(tmp_path / "text.npz"))
    with pytest.raises(ColdpressError, match="there is no file"):
        batches(folder, "arrays", file=str(tmp_path / "missing.npz"))


@pytest.fixture
def spoken(tmp_path: Path) -> Path:
    folder = tmp_path / "spoken"
    folder.mkdir()
    write_sound(folder / "a.wav", np.array([0.5, -0.5, 0.25]))
    write_sound(folder / "b.wav", np.array([1.0]))
    (folder / "all.csv").write_text("audio,said,speaker\na.wav,hello there,ann\nb.wav,yes,bob\n")
    return folder


def test_sounds_come_with_what_is_said(batches, spoken, tmp_path):
    data = {"folder": str(spoken), "data_files": [str(spoken / "all.csv")], "batch_size": 2}
    [batch] = batches(model(tmp_path, 4), "audio", **data, text_col="said")
    assert batch.labels == ["hello there", "yes"]
    assert np.allclose(batch.inputs["input_values"], [[0.5, -0.5, 0.25], [1, 0, 0]], atol=1e-4)
    [classes] = batches(model(tmp_path, 4), "audio", **data, label_col="speaker", label_names=["bob", "ann"])
    assert classes.labels.tolist() == [1, 0]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_of_samples_is_read(batches, spoken, tmp_path, width):
    values = np.array([0.0, 0.5, -0.5, -0.99, 0.99])
    write_sound(spoken / "a.wav", values, width)
    data = {"folder": str(spoken), "data_files": [str(spoken / "all.csv")], "max_samples": 1}
    [batch] = batches(model(tmp_path, 4), "audio", **data)
    assert np.allclose(batch.inputs["input_values"][0], values, atol=0.02 if width == 1 else 1e-4)


def test_channels_are_averaged(batches, spoken, tmp_path):
    write_sound(spoken / "a.wav", np.array([0.5, 0.0, -0.5, 0.0]), channels=2)
    data = {"folder": str(spoken), "data_files": [str(spoken / "all.csv")], "max_samples": 1}
    [batch] = batches(model(tmp_path, 4), "audio", **data)
    assert np.allclose(batch.inputs["input_values"][0], [0.25, -0.25], atol=1e-4)


def test_a_sound_of_another_rate_is_resampled(batches, spoken, tmp_path):
    for name, rate in (("a", 8000), ("b", 44100)):
        write_sound(spoken / f"{name}.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate), rate=rate)
    data = {"folder": str(spoken), "data_files": [str(spoken / "all.csv")], "batch_size": 2}
    [batch] = batches(model(tmp_path, 4), "audio", **data)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    assert np.abs(batch.inputs["input_values"] - tone)[:, 800:-800].max() < 0.01


def test_the_models_feature_extractor_makes_the_features(batches, spoken, tmp_path):
    folder = model(tmp_path, 4)
    settings = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "return_attention_mask": True}))
    [batch] = batches(folder, "audio", folder=str(spoken), data_files=[str(spoken / "all.csv")], batch_size=2)
    assert abs(batch.inputs["input_values"][0].mean()) < 1e-6
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_sounds_that_cannot_be_used_are_named(batches, spoken, tmp_path):
    folder, data = model(tmp_path, 4), {"folder": str(spoken), "data_files": [str(spoken / "all.csv")]}
    write_sound(spoken / "b.wav", np.array([]))
    with pytest.raises(ColdpressError, match=r"row 2: there is no sound in .*b\.wav"):
        batches(folder, "audio", **data)
    (spoken / "b.wav").unlink()
    with pytest.raises(ColdpressError, match="row 2: there is no sound file"):
        batches(folder, "audio", **data)
    with pytest.raises(ColdpressError, match="no column 'transcript'; found: audio, said, speaker"):
        batches(folder, "audio", **data, text_col="transcript")
    with pytest.raises(ColdpressError, match="needs the folder"):
        batches(folder, "audio", data_files=[str(spoken / "all.csv")])
    with pytest.raises(ColdpressError, match="not both"):
        batches(folder, "audio", **data, text_col="said", label_col="speaker")
