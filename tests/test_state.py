"""The state: a mapping, a pytree, arithmetic by component, masks."""

import pytest
import torch

from structdiff.errors import StructDiffError
from structdiff.state import State, as_state, expand_right

torch.set_num_threads(1)
SIZES = torch.tensor([3, 1])


def graph(seed=0):
    generator = torch.Generator().manual_seed(seed)
    exists = torch.arange(3) < SIZES[:, None]
    pairs = exists[:, :, None] & exists[:, None, :]
    return State(
        {
            "x": torch.randn(2, 3, 2, generator=generator),
            "adj": torch.randn(2, 3, 3, generator=generator),
        },
        {"x": exists[:, :, None], "adj": pairs},
    )


def test_a_state_is_a_mapping_of_its_components():
    x = graph()
    assert list(x) == ["x", "adj"] and len(x) == 2 and x.batch_size == 2
    assert x["adj"].shape == (2, 3, 3) and x.dtype == torch.float32


def test_a_plain_tensor_is_the_component_x():
    x = torch.ones(2, 3)
    assert as_state(x)["x"] is x
    state = State({"y": x})
    assert as_state(state) is state


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: State({}), "at least one"),
        (lambda: State({"x": torch.ones(2), "y": torch.ones(3)}), "batch"),
        (lambda: State({"x": torch.tensor(1.0)}), "batch"),
        (lambda: State({"x": torch.ones(2, 3)}, {"y": torch.ones(2, 3).bool()}), "no component"),
        (lambda: State({"x": torch.ones(2, 3)}, {"x": torch.ones(2, 3)}), "boolean"),
        (lambda: State({"x": torch.ones(2, 3)}, {"x": torch.ones(2, 2).bool()}), "broadcast"),
        (lambda: State({"x": torch.ones(2)}, {"x": torch.ones(1, 1, 2).bool()}), "broadcast"),
    ],
)
def test_what_is_no_state_is_refused_with_the_reason(make, message):
    with pytest.raises(StructDiffError, match=message):
        make()


def test_a_state_cannot_be_changed():
    with pytest.raises(TypeError):
        graph()["x"] = torch.zeros(2, 3, 2)
    with pytest.raises(TypeError):
        graph().masks["x"] = torch.zeros(2, 3, 1).bool()


def test_arithmetic_acts_on_every_component():
    a, b = graph(0), graph(1)
    result = (2 * a - b / 4 + 1) ** 2
    for k in a:
        assert torch.allclose(result[k], (2 * a[k] - b[k] / 4 + 1) ** 2)
    assert set(result.masks) == {"x", "adj"}


def test_subtraction_from_a_number_and_negation():
    a = graph()
    assert torch.equal((1 - a)["x"], 1 - a["x"]) and torch.equal((-a)["adj"], -a["adj"])


def test_coefficients_scale_component_by_component_and_object_by_object():
    a = graph()
    scaled = a * {"x": torch.tensor([2.0, 3.0], dtype=torch.float64), "adj": 0.5}
    assert torch.equal(scaled["x"][1], 3 * a["x"][1]) and scaled["x"].dtype == torch.float32
    assert torch.equal(scaled["adj"], 0.5 * a["adj"])


def test_a_tensor_scales_every_component_object_by_object():
    a = graph()
    assert torch.equal((a * torch.tensor([1.0, 0.0]))["adj"][1], torch.zeros(3, 3))


def test_expand_right_aligns_with_the_batch():
    assert expand_right(torch.ones(4).double(), torch.zeros(4, 2, 3)).shape == (4, 1, 1)
    assert expand_right(torch.tensor(2.0).double(), torch.zeros(4, 2)).shape == ()


def test_masked_zeroes_what_does_not_exist_even_nan():
    x = graph()
    x = x.replace(x=torch.where(x.masks["x"], x["x"], torch.nan))
    assert not x.masked()["x"][1, 1:].any()
    assert torch.equal(x.masked()["x"][0], x["x"][0])


def test_inner_products_count_existing_entries_only():
    a, b = graph(0), graph(1)
    expected = (a["x"][1, 0] * b["x"][1, 0]).sum() + a["adj"][1, 0, 0] * b["adj"][1, 0, 0]
    assert float(a.dot(b)[1]) == pytest.approx(float(expected), rel=1e-5)
    assert torch.allclose(a.square_norm(), sum(a.square_norms().values()))


def test_inner_products_follow_names_not_order():
    a, b = graph(0), graph(1)
    swapped = State({"adj": b["adj"], "x": b["x"]}, b.masks)
    assert torch.allclose(a.dot(swapped), a.dot(b))


@pytest.mark.parametrize("index", [slice(1, 2), torch.tensor([1]), torch.tensor([False, True])])
def test_taking_objects_takes_their_masks(index):
    one = graph().take(index)
    assert one.batch_size == 1 and torch.equal(one.masks["x"][0, :, 0], torch.arange(3) < 1)


def test_a_mask_shared_by_the_batch_is_kept_when_taking():
    x = State({"x": torch.ones(4, 3)}, {"x": torch.tensor([[True, True, False]])})
    assert x.take(slice(0, 2)).masks["x"].shape == (1, 3)


def test_cat_undoes_take():
    x = graph()
    back = State.cat([x.take(slice(0, 1)), x.take(slice(1, 2))])
    assert all(torch.equal(back[k], x[k]) for k in x)
    assert all(torch.equal(back.masks[k], x.masks[k]) for k in x)


def test_casting_leaves_masks_boolean():
    x = graph().to(torch.float64)
    assert x.dtype == torch.float64 and x.masks["x"].dtype == torch.bool


def test_flatten_and_unflatten_are_inverse_on_existing_entries():
    x = graph().masked()
    back = x.unflatten(x.flatten())
    assert all(torch.equal(back[k], x[k]) for k in x)


def test_a_state_is_a_pytree():
    from torch.utils import _pytree as pytree

    x = graph()
    doubled = pytree.tree_map(lambda v: v * 2 if v.is_floating_point() else v, x)
    assert isinstance(doubled, State) and torch.equal(doubled["x"], 2 * x["x"])
    assert torch.equal(doubled.masks["adj"], x.masks["adj"])


def test_functional_transforms_see_through_a_state():
    x = graph().to(torch.float64)
    product, tangent = torch.func.jvp(
        lambda v: x.replace(x=v).square_norm(), (x["x"],), (torch.ones_like(x["x"]),)
    )
    assert torch.allclose(product, x.square_norm())
    assert torch.allclose(tangent, 2 * x.masked()["x"].sum((1, 2)))
    doubled = torch.func.vmap(lambda s: s * 2)(x)
    assert isinstance(doubled, State) and torch.equal(doubled["adj"], 2 * x["adj"])


def test_arithmetic_compiles_to_one_graph():
    def step(a, b):
        return (a * 0.5 + b * {"x": 2.0, "adj": 3.0}).masked()

    a, b = graph(0), graph(1)
    compiled = torch.compile(step, backend="eager", fullgraph=True)
    assert torch.equal(compiled(a, b)["adj"], step(a, b)["adj"])


def test_repr_names_components_shapes_and_masks():
    assert repr(graph()) == "State(x: float32(2, 3, 2) masked, adj: float32(2, 3, 3) masked)"
