import base64
import io
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from rdc.evaluation import EvaluationSettings, evaluate
from rdc.reports import model_info, text_report, write_reports
from rdc.reports.markdown import COLUMNS, markdown_report, markdown_row
from rdc.reports.pictures import difference_picture, gallery, picture
from rdc.reports.words import interval, percent, seconds_words
from tests.evaluation_models import gaussian_classifier, labelled_by
from tests.tolerances import FLOAT32_NETWORK

FIELD = (
    "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported "
    "autoattack_acc external footnote unreliable"
).split()  # ../shared/field.md


def make(folder, classifier=None, command="rdc evaluate", **changes):
    classifier = classifier or gaussian_classifier()
    settings = EvaluationSettings(
        **{"model": "gaussian", "dataset": "blobs", "n": 40, "eps": "4/255", "steps": 20, **changes}
    )
    return evaluate(classifier, labelled_by(classifier), settings, folder, command=command, progress=False), classifier


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    evaluation, classifier = make(
        tmp_path_factory.mktemp("runs") / "attacked", gaussian_classifier(lm="paper-v2"), n=24
    )
    return evaluation, classifier, write_reports(evaluation, classifier)


def pngs(page):
    return [
        Image.open(io.BytesIO(base64.b64decode(code)))
        for code in re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    ]


def svgs(page):
    """Plots, each parsed: the wide one, and before it that of a phone."""
    found = re.findall(r'(?:src|srcset)="data:image/svg\+xml;base64,([^"]+)"', page)
    return [ElementTree.fromstring(base64.b64decode(code)) for code in found]


def words_of(plot):
    return " ".join(text.text or "" for text in plot.iter("{http://www.w3.org/2000/svg}text"))


def test_plots_are_words_and_lines_in_two_widths(attacked):
    evaluation, _, files = attacked
    plots = svgs(files["report.html"].read_text())
    widths = [float(plot.attrib["width"].removesuffix("pt")) for plot in plots]
    assert set(widths[::2]) == {72 * 3.9} and set(widths[1::2]) == {72 * 9.2}
    for narrow, wide in zip(plots[::2], plots[1::2], strict=True):
        assert sorted(words_of(narrow).split()) and "var(--ink)" in ElementTree.tostring(wide, "unicode")
        assert "prefers-color-scheme:dark" in ElementTree.tostring(narrow, "unicode")
    assert percent(evaluation.figures.robust.accuracy) in words_of(plots[0])


def test_pictures_stand_image_by_image(attacked):
    """So that a style sheet makes columns of them, or rows on a phone."""
    evaluation, classifier, files = attacked
    page = files["report.html"].read_text()
    assert '<div class="pictures" style="--lines:5;--images:8">' in page
    names = re.findall(r'<div class="name">([^<]*)', page)
    assert names == ["true class", "clean", "adversarial", "difference", "after LM"]
    cells = re.findall(r'<div class="(cell first|cell)">', page)
    assert cells == ["cell first", *["cell"] * 4] * 8


def test_every_figure_says_its_heading_where_the_head_is_hidden(attacked):
    _, _, files = attacked
    page = files["report.html"].read_text()
    assert (
        page.count("<table") == page.count('<table class="figures">') == 4
    )  # attacks, scores, steps and queries, classes
    assert "<td>" not in page and '<td class="n" data-label="survivors">' in page


def test_a_plain_model_has_no_words_of_diffusion(tmp_path):
    from torch import nn

    from rdc.defences import PlainClassifier

    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    plain = PlainClassifier(network, image_shape=(1, 8, 8), num_classes=4)
    data = labelled_by(gaussian_classifier())
    evaluation = evaluate(
        plain, data, EvaluationSettings("net", "blobs", n=4, eps="4/255", steps=2), tmp_path, progress=False
    )
    page = write_reports(evaluation, plain)["report.html"].read_text()
    for words in ("likelihood", "LM", "noise level", "known noise", "very noise"):
        body = page.partition("</style>")[2]
        assert words not in re.sub(r'base64,[^"]*', "", body) and words not in text_report(evaluation), words
    assert "100 % does not mean certain" in page and re.search(r"\d %\*<", page)


def test_fitted_probabilities_need_no_star(attacked, tmp_path):
    _, _, files = attacked
    assert re.search(r"\d %\*<", files["report.html"].read_text())  # logit scale "sum"
    evaluation, classifier = make(tmp_path / "run", gaussian_classifier(logit_scale=0.5), n=4, attacks=())
    page = write_reports(evaluation, classifier)["report.html"].read_text()
    assert not re.search(r"\d %\*<", page) and "does not mean certain" not in page


def test_files(attacked):
    evaluation, _, files = attacked
    assert set(files) == {"report.html", "report.md", "report.json", "model_info.json"}
    assert json.loads(files["report.json"].read_text()) == evaluation.report
    assert json.loads(files["model_info.json"].read_text()).keys() == set(FIELD)


def test_page_is_one_file_with_everything_in_it(attacked):
    evaluation, _, files = attacked
    page = files["report.html"].read_text()
    assert not re.search(r"<script|<link|@import|src=\"(?!data:)|srcset=\"(?!data:)", page)
    links = [part.attrib[key] for plot in svgs(page) for part in plot.iter() for key in part.attrib if "href" in key]
    assert "url(" not in page and all(link.startswith("#") for link in links)
    linked = re.findall(r'href="([^"]*)"', page)
    assert linked == ["report.json", "results.jsonl", "report.md", "model_info.json"]
    assert all((files["report.html"].parent / name).is_file() for name in linked)
    assert f"{100 * evaluation.report['robust']['accuracy']:.1f} %" in page
    assert interval(evaluation.report["robust"]["ci95"]) in page
    for flag in evaluation.report["flags"]:
        assert flag["name"] in page
    found = pngs(page)
    shown = 8
    assert sum(image.size == (8, 8) for image in found) == 4 * shown  # clean, adversarial, difference, after LM
    assert len(svgs(page)) == 2 * (
        2 + 3
    )  # accuracy against steps, and against queries, three images' losses; each wide and narrow
    for image in found:
        image.load()


def test_pictures_are_the_images(attacked):
    evaluation, classifier, files = attacked
    chosen = gallery(evaluation, classifier)
    small = [np.asarray(image) for image in pngs(files["report.html"].read_text()) if image.size == (8, 8)]
    clean = evaluation.dataset.images[chosen.rows, 0].numpy()
    assert np.array_equal(np.stack(small[::4]), clean)  # clean, adversarial, difference, after LM of each image
    adversarial = np.rint(255 * evaluation.x_adv[chosen.rows, 0])
    assert np.array_equal(np.stack(small[1::4]), adversarial)
    assert chosen.gain == pytest.approx(255 / 4)
    broken = [evaluation.images[row]["robust"] for row in chosen.rows]
    assert broken == sorted(broken) and len(set(chosen.rows)) == 8


def test_losses_shown_are_those_that_decide(attacked):
    evaluation, classifier, _ = attacked
    chosen = gallery(evaluation, classifier)
    for row, (clean, adversarial) in chosen.losses.items():
        assert clean.shape == adversarial.shape == (3, 4)
        pair = torch.stack([evaluation.dataset.pixels(row), torch.from_numpy(evaluation.x_adv[row])])
        with torch.no_grad():
            expected = classifier.class_losses(pair).numpy()
        assert np.allclose([clean.sum(0), adversarial.sum(0)], expected, rtol=FLOAT32_NETWORK)
        assert clean.sum(0).argmin() == evaluation.images[row]["clean"]["predicted"]
        assert adversarial.sum(0).argmin() == evaluation.images[row]["adversarial"]["predicted"]


def test_page_without_attack_or_lm(tmp_path):
    evaluation, classifier = make(tmp_path / "run", attacks=())
    page = write_reports(evaluation, classifier)["report.html"].read_text()
    assert "36 of 40 images are classified correctly" in page and "no likelihood maximisation" in page
    assert sum(image.size == (8, 8) for image in pngs(page)) == 8
    assert "Accuracy against attack steps" not in page


def test_page_with_fresh_noise_and_restarts(tmp_path):
    evaluation, classifier = make(
        tmp_path / "run", n=8, steps=3, restarts=2, noise="fresh", eot=2, resubmissions=3, norm="l2", eps=0.3
    )
    page = write_reports(evaluation, classifier)["report.html"].read_text()
    assert "worst of 3" in page and "l2 0.3" in page and "2 restarts" in page


def test_page_escapes_what_users_name(tmp_path):
    evaluation, classifier = make(
        tmp_path / "run", attacks=(), n=4, model="<script>alert(1)</script>", command="rdc evaluate --model '<b>'"
    )
    page = write_reports(evaluation, classifier)["report.html"].read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and "&lt;b&gt;" in page
    evaluation, _ = make(tmp_path / "pipe", attacks=(), n=4, command="rdc evaluate --out 'a|b'")
    assert "a\\|b" in markdown_row(evaluation)


def test_reports_after_resume_are_the_same(tmp_path):
    pages = []
    for name, stop in (("whole", None), ("resumed", 16)):
        classifier = gaussian_classifier()
        settings = EvaluationSettings("gaussian", "blobs", n=40, eps="4/255", steps=20, batch=16)

        def on_batch(finished, total, stop=stop):
            if finished == stop:
                raise InterruptedError

        if stop:
            with pytest.raises(InterruptedError):
                evaluate(
                    classifier, labelled_by(classifier), settings, tmp_path / name, progress=False, on_batch=on_batch
                )
        evaluation = evaluate(classifier, labelled_by(classifier), settings, tmp_path / name, progress=False)
        files = write_reports(evaluation, classifier)
        page = re.sub(r'<span class="time">[^<]*</span>', "", files["report.html"].read_text())
        pages.append(
            (
                re.sub(r"<dt>commit.*?</dd>", "", page),
                files["report.md"].read_text(),
                files["model_info.json"].read_text(),
            )
        )
    assert pages[0] == pages[1]


def test_markdown_row(attacked):
    evaluation, _, files = attacked
    lines = files["report.md"].read_text().splitlines()
    assert [line.count("|") for line in lines[:3]] == [len(COLUMNS) + 1] * 3
    assert (
        "l∞ 4/255" in lines[2]
        and "paper-v2" in lines[2]
        and percent(evaluation.report["clean"]["accuracy"]) in lines[2]
    )
    assert "wide-interval" in markdown_report(evaluation)


def test_model_info(attacked, tmp_path):
    evaluation, classifier, _ = attacked
    info = model_info(evaluation, classifier.evaluations_per_image)
    assert list(info) == FIELD
    assert info["reported"] == f"{100 * evaluation.report['robust']['accuracy']:.2f}" and info["eps"] == "4/255"
    assert info["number_forward_passes"] == 3 * 4 + 5 and info["autoattack_acc"] is None and info["unreliable"] is False
    weak, _ = make(tmp_path / "weak", n=4, steps=2)
    assert model_info(weak)["unreliable"] is True
    clean, _ = make(tmp_path / "clean", n=4, attacks=())
    assert model_info(clean)["reported"] is None


def test_difference_picture():
    difference = np.zeros((1, 1, 3), np.float32)
    difference[0, 0, 1:] = 0.1, -0.1
    white, red, blue = np.asarray(Image.open(io.BytesIO(difference_picture(difference, 10.0))))[0].astype(int)
    assert white.tolist() == [255, 255, 255] and red[0] > red[2] + 100 and blue[2] > blue[0] + 100
    colour = np.zeros((3, 1, 1), np.float32)
    assert np.asarray(Image.open(io.BytesIO(difference_picture(colour, 10.0)))).tolist() == [[[128, 128, 128]]]


def test_picture_keeps_every_grey_level():
    grey = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture(grey.astype(np.float32) / 255)))), grey[0])


def test_words():
    assert percent(None) == "–" and percent(0.71484) == "71.5 %" and interval([0.65, 0.7635]) == "[65.0, 76.3]"
    assert [seconds_words(s) for s in (3.21, 75, 7260)] == ["3.2 s", "1 min 15 s", "2 h 1 min"]
