import json
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "loss_experiments.ipynb"
SEND_RESULTS = """
import json
print(json.dumps([table, walked, blank_pull, results, fake_results], default=float))
"""
NUMBER = r"[-+]?\d+\.\d+(?:e[-+]\d+)?"


@pytest.fixture(scope="module")
def committed() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="module")
def executed() -> nbformat.NotebookNode:
    """The notebook run in a fresh kernel; its last cell prints the results."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(SEND_RESULTS))
    client = NotebookClient(
        notebook, timeout=300, coalesce_streams=True, resources={"metadata": {"path": str(ROOT)}}
    )
    return client.execute()


@pytest.fixture(scope="module")
def measured(executed: nbformat.NotebookNode) -> list[dict]:
    return json.loads(printed(executed.cells[-1]))


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def test_the_committed_file_is_small_and_was_run_from_top_to_bottom(
    committed: nbformat.NotebookNode,
) -> None:
    assert NOTEBOOK.stat().st_size < 700_000
    cells = code_cells(committed)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("data" in output for output in outputs) == sum("subplots" in c.source for c in cells)
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_committed_file_names_no_machine(committed: nbformat.NotebookNode) -> None:
    texts = [cell.source for cell in committed.cells] + [*map(printed, code_cells(committed))]
    assert not re.findall(r"(?<![\w.])/\w+/\w+|[A-Z]:\\|0x[0-9a-f]{6}", "\n".join(texts))
    assert set(committed.metadata) == {"kernelspec", "language_info"}
    assert committed.metadata.kernelspec.name == "python3"


def test_the_committed_outputs_are_those_of_the_code(
    committed: nbformat.NotebookNode, executed: nbformat.NotebookNode
) -> None:
    for old, new in zip(code_cells(committed), code_cells(executed)):
        assert re.sub(NUMBER, "", printed(old)).split() == re.sub(NUMBER, "", printed(new)).split()
        then, now = (np.array(re.findall(NUMBER, printed(cell)), float) for cell in (old, new))
        np.testing.assert_allclose(now, then, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("constants", ["printed", "squared"])
def test_inverted_is_the_worst_and_right_the_best_for_every_term(
    measured: list[dict], constants: str
) -> None:
    rows = measured[0][constants]
    for term, right in rows["right"].items():
        others = [row[term] for name, row in rows.items() if name != "right" and term in row]
        assert right < min(others), term
        assert rows["inverted"][term] == max(others), term
        assert rows["blank"][term] < rows["another lung"][term], term


def test_blank_is_a_loophole_that_squared_constants_close(measured: list[dict]) -> None:
    printed_table, squared_table = measured[0]["printed"], measured[0]["squared"]
    blank = printed_table["blank"]
    assert blank["structure_clinical"] < printed_table["moved"]["structure_clinical"]
    for name in ("moved", "brighter"):
        assert blank["intensity_clinical"] < printed_table[name]["intensity_clinical"]
    of_the_right_lung = ("right", "brighter", "moved", "blurred", "nodule", "other detail")
    dearest = max(squared_table[name]["structure_clinical"] for name in of_the_right_lung)
    assert squared_table["blank"]["structure_clinical"] > dearest


def test_detail_below_a_clinical_pixel_is_seen_by_the_cycle_alone(measured: list[dict]) -> None:
    rows = measured[0]["printed"]
    for term in ("structure_clinical", "intensity_clinical"):
        assert rows["other detail"][term] < 1.1 * rows["right"][term]
        assert rows["nodule"][term] > 2 * rows["right"][term]
    assert rows["other detail"]["reconstruction"] > 0.9 * rows["blank"]["reconstruction"]


@pytest.mark.parametrize(("constants", "share"), [("printed", 0.75), ("squared", 0.9)])
def test_structure_micro_is_mostly_a_constant(
    measured: list[dict], constants: str, share: float
) -> None:
    rows = measured[0][constants]
    assert share < rows["right"]["structure_micro"] / rows["blank"]["structure_micro"] < 1


def test_every_walk_leads_from_inverted_over_blank_to_right(measured: list[dict]) -> None:
    walked = measured[1]
    for name, walk in walked.items():
        assert walk["inverted"] > walk["blank"] > walk["right"], name
        assert walk["slope"] < 0, name
        assert walk["blur"] == pytest.approx(4, abs=0.5), name
        literal = name == "literal equation 1"
        assert (walk["right"] > 0.3) if literal else (walk["right"] < 1e-5), name
        assert walk["brightness"] < -0.02 if literal else abs(walk["brightness"]) < 1e-6, name
    for window in ("gaussian", "global"):
        paper = walked["printed, gaussian (paper)" if window == "gaussian" else "printed, global"]
        squared = walked[f"squared, {window}"]
        assert squared["blank"] > 2.5 * paper["blank"]
        assert squared["slope"] < 2.5 * paper["slope"]
        assert paper["slope"] < 5 * walked["MSE"]["slope"]


def test_a_nearly_blank_image_is_pulled_to_the_structures(measured: list[dict]) -> None:
    pulls = measured[2]
    for name, pull in pulls.items():
        whole_image = "global" in name or name == "MSE"
        assert pull["correlation"] > (0.99 if whole_image else 0.5), name
        assert (pull["border"] > 0.5) if whole_image else (pull["border"] < 0.2), name
        assert name == "MSE" or pull["largest"] > 3 * pulls["MSE"]["largest"], name


def test_descent_arrives_at_the_scan_in_blocks(measured: list[dict]) -> None:
    results = measured[3]
    for run in results.keys() - {"bicubic"}:
        numbers = results[run]
        assert numbers["correlation"] > 0.99, run
        assert numbers["contrast"] == pytest.approx(1, abs=0.02), run
        assert numbers["psnr"] < results["bicubic"]["psnr"], run
        darker = numbers["bias"] < -0.02
        assert darker if "literal" in run else abs(numbers["bias"]) < 0.002, run


def test_the_two_micro_terms_do_not_agree(measured: list[dict]) -> None:
    runs = measured[4]
    assert runs["intensity_micro"]["correlation"] > 0.999
    assert abs(runs["intensity_micro"]["bias"]) < 0.002
    assert runs["structure_micro"]["bias"] < runs["all"]["bias"] < -0.02
    assert runs["structure_micro, squared"]["contrast"] > 1.3
    assert max(run["psnr"] for run in runs.values()) < 30
