"""The notebooks run from top to bottom, without a network."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list:
    """What the cells of the interpolation demo put out, on a model that is hardly trained."""
    notebook = nbformat.read(NOTEBOOKS / "interpolation.ipynb", as_version=4)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", ())]
    parameters.source += "\nEPOCHS, WARMUP, ITERATIONS = 2, 1, 100"
    folder = tmp_path_factory.mktemp("notebook")
    resources = {"metadata": {"path": str(folder)}}
    client = nbclient.NotebookClient(notebook, timeout=600, resources=resources)
    client.execute()
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]


def test_the_interpolation_demo_compares_both_walks(outputs: list) -> None:
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    objective = {
        name: float(re.search(rf"^{name}.* J ([\d.-]+);", said, re.MULTILINE)[1])
        for name in ("linear", "likelihood")
    }
    assert objective["likelihood"] <= objective["linear"]
    assert re.search(r"the search began at the (line|arc|counter-arc|wave|graph)", said)
    assert re.search(r"J of the published search [\d.-]+, of ours [\d.-]+", said)


def test_the_interpolation_demo_shows_its_pictures(outputs: list) -> None:
    drawn = [
        output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})
    ]
    assert len(drawn) == 4
    for picture in drawn:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))))
        assert pixels.shape[1] > 200 and pixels.std() > 5


def test_notebooks_are_kept_without_outputs() -> None:
    for path in NOTEBOOKS.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            assert not cell.get("outputs") and not cell.get("execution_count"), path
