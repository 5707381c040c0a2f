"""`summary` shows layers under the names of the model's attributes."""

import pytest
import zoo

pytestmark = pytest.mark.portable


def summary(model):
    lines = []
    model.summary(line_length=100, print_fn=lambda text, **_: lines.append(text))
    return "\n".join(lines)


@pytest.mark.parametrize("name", zoo.MODELS)
def test_layers_are_named_after_their_role(name):
    model = zoo.new(name)
    text = summary(model)
    shown = [layer.name for layer in model.layers]
    for layer in shown:
        assert layer in text and not layer.startswith(("shifted", "masked", "weight"))
    assert len(set(shown)) == len(shown)
    assert f"{model.count_params():,}" in text


def test_resolutions_and_weights_of_the_model_are_shown():
    text = summary(zoo.new("pp", num_resolutions=2))
    for layer in ("first_2", "halve_0_1", "doubling_0_0", "up_1_1_1", "head"):
        assert layer in text
    text = summary(zoo.new("nade"))
    assert "W: weight of the model, (64, 7)" in text
