"""The drawing of the models is that of its script."""

from xml.etree import ElementTree

from benchmarks import drawings


def test_the_drawing_is_that_of_its_script(tmp_path):
    drawings.main(["--docs", str(tmp_path)])
    made = (tmp_path / "pictures" / "models.svg").read_text()
    message = "docs/pictures/models.svg is old; run: python -m benchmarks.drawings"
    assert made == (drawings.ROOT / "docs" / "pictures" / "models.svg").read_text(), message


def test_the_drawing_is_valid_and_has_a_ground_of_its_own():
    root = ElementTree.fromstring(drawings.models())
    name = "{http://www.w3.org/2000/svg}"
    ground = next(root.iter(f"{name}rect"))
    assert ground.get("fill") == "#FFFFFF"
    assert float(ground.get("width", 0)) >= drawings.WIDTH - 2
    words = [text.text for text in root.iter(f"{name}text")]
    assert all(model in words for model in ("LMM", "MAL", "MAG", "MAC"))
