"""The benchmark's peers are compared with the service only while they answer the same."""

import ast
from pathlib import Path

from cases_service.cases.schemas import CASE_ATTRIBUTES

CONTESTANTS = Path(__file__).parent.parent / "benchmarks" / "contestants"


def class_of(module: str, *names: str) -> ast.ClassDef:
    """Return a class, or a class inside it. Modules of peers are not imported: their packages are the benchmark's."""
    found: ast.Module | ast.ClassDef = ast.parse((CONTESTANTS / f"{module}.py").read_text())
    for name in names:
        (found,) = (node for node in found.body if isinstance(node, ast.ClassDef) and node.name == name)
    assert isinstance(found, ast.ClassDef)
    return found


def test_the_response_model_of_fastapi_has_the_attributes_of_a_case() -> None:
    annotated = [node.target for node in class_of("fastapi_peer", "CaseOut").body if isinstance(node, ast.AnnAssign)]
    assert [target.id for target in annotated if isinstance(target, ast.Name)] == list(CASE_ATTRIBUTES)


def test_the_serializer_of_django_rest_framework_has_the_attributes_of_a_case() -> None:
    values = {
        ast.unparse(node.targets[0]): node.value
        for node in class_of("drf", "CaseSerializer", "Meta").body
        if isinstance(node, ast.Assign)
    }
    assert ast.literal_eval(values["fields"]) == CASE_ATTRIBUTES
