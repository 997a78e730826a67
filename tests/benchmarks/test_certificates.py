"""The study of certificates: parts by several processes are joined as if one had run."""

from benchmarks.studies import certificates
from rdc.certification import CertificationSettings, certify
from rdc.data import load_dataset
from rdc.errors import ConfigError
from rdc.models.zoo import load
from rdc.storage.json_files import read_json
from tests.evaluation_models import save_tiny


def test_parts_are_joined_and_collected(tmp_path, monkeypatch, capsys):
    model, data = save_tiny(tmp_path)

    def run(name, **settings):
        chosen = {"n0": 5, "n": 20, "alpha": 0.05, "sigma": 0.4, "noised_levels": 1, **settings}
        made = CertificationSettings(model, data, **chosen)
        return certify(load(model), load_dataset(data), made, tmp_path / "work" / name, progress=False).images

    whole = run("elsewhere", n_images=4)
    run("EPNDC-0.25-2", start=2, n_images=2)
    run("EPNDC-0.25-0", n_images=3)  # image 2 twice
    _, images = certificates._joined(tmp_path / "work", "EPNDC-0.25")
    assert tuple(images) == whole
    assert certificates._joined(tmp_path / "work", "EPNDC-0.5") is None
    monkeypatch.setattr(certificates, "RESULT", tmp_path / "certificates.json")
    monkeypatch.setattr(certificates, "PICTURE", tmp_path / "certificates.png")
    monkeypatch.setattr("sys.argv", ["certificates", "--collect", "--work", str(tmp_path / "work")])
    certificates.main()
    report = read_json(tmp_path / "certificates.json")
    assert list(report) == ["EPNDC-0.25"] and report["EPNDC-0.25"]["n"] == 4
    assert [row[0] for row in report["EPNDC-0.25"]["per_image"]["rows"]] == [0, 1, 2, 3]
    assert "4 images finished" in capsys.readouterr().out and (tmp_path / "certificates.png").stat().st_size > 1000
    (tmp_path / "certificates.png").unlink()
    monkeypatch.setattr("sys.argv", ["certificates", "--collect", "--work", str(tmp_path / "gone")])
    certificates.main()  # a row whose folder is gone stays, in the file and in the picture
    assert read_json(tmp_path / "certificates.json") == report and (tmp_path / "certificates.png").exists()
    for mine, image in zip(certificates._kept(report["EPNDC-0.25"]), whole, strict=True):
        assert (mine.image, mine.radius, mine.right) == (image.image, image.radius, image.right)
        assert mine.abstained == image.abstained
    run("EPNDC-0.25-3", start=3, n_images=1, seed=1)
    try:
        certificates._joined(tmp_path / "work", "EPNDC-0.25")
    except ConfigError as error:
        assert "other settings" in str(error)
    else:
        raise AssertionError("parts of another seed were joined")
