"""The service against its own OpenAPI: whatever schemathesis thinks of, the answer is one that is promised."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import data

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed; `pip install schemathesis`")

EXAMPLES = 20  # of each operation and way to make them
HEADERS = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.name.lower())
def test_every_answer_is_one_that_the_documentation_promises(toy: Any, tmp_path: Any, mode: Any) -> None:
    # Not every body that fits the schema is an image: that it is refused is right.
    unless = [schemathesis.checks.positive_data_acceptance]

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=data())
    def try_out(operation: Any, data: Any) -> None:
        case = data.draw(operation.as_strategy(generation_mode=mode))
        case.call_and_validate(headers=HEADERS, excluded_checks=unless)

    app = toy.app(store=toy.copy(tmp_path / "store"), public=True, token="secret")
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        with suppress(Unsatisfiable):  # nothing can be wrong about a request that takes nothing
            try_out(operation)
